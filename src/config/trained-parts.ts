/** What a config trains, and how fast: by part of the model, or an adapter beside it. */

import { LORA_TARGETS, type LoraKnobs, PIECES, type Piece } from "./lora.ts";
import type { Config } from "./schema.ts";

/** The adapter that a run trains, with its targets; null without one. */
export function loraOf({ lora }: Pick<Config, "lora">): LoraKnobs | null {
  if (lora === undefined) return null;
  const { rank, alpha, dropout, rslora } = lora;
  return { rank, alpha, dropout, rslora, targets: lora.targets ?? lora.parts.flatMap((part) => LORA_TARGETS[part]) };
}

type Trained = Pick<Config, "lora"> & {
  model: Pick<Config["model"], "freezeVision">;
  trainer: Pick<Config["trainer"], "freeze">;
};

/** The pieces of the model whose own weights are trained. */
export function trainedPieces({ lora, model, trainer }: Trained): Set<Piece> {
  if (lora !== undefined) return new Set();
  const frozen = new Set<string>([...trainer.freeze, ...(model.freezeVision ? ["vision"] : [])]);
  return new Set(PIECES.filter((piece) => !frozen.has(piece) && !frozen.has(piece.split(".")[0] as string)));
}

/** Whether the vision tower stays what it is: no weight of it is trained and no adapter is beside one. */
export function isVisionFrozen(config: Trained): boolean {
  if (config.lora !== undefined) return !config.lora.parts.includes("vision");
  return ![...trainedPieces(config)].some((piece) => piece.startsWith("vision."));
}

/** Peak learning rate of a piece or of adapters. */
export function peakRate(
  piece: Piece | "lora",
  { learningRate, partRates }: Pick<Config["optimizer"], "learningRate" | "partRates">,
): number {
  const whole = piece.split(".")[0] as "vision" | "language" | "lora";
  return partRates[piece] ?? partRates[whole] ?? learningRate;
}
