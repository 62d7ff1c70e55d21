/** Which weights of a model a run trains, and how fast: by the parts that trainer.freeze and optimizer.partRates name. */

import type { Piece } from "../config/lora.ts";
import type { Config } from "../config/schema.ts";
import { loraOf, peakRate, trainedPieces } from "../config/trained-parts.ts";
import type { Parameter } from "../model/parameter.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import { PARTS, partOf } from "../model/qwen2vl/parameters.ts";
import type { Metrics } from "../types.ts";

/** The piece of the model that a parameter, or an adapter beside it, belongs to. */
export function pieceOf(parameter: string): Piece {
  const part = partOf(parameter);
  if (part === PARTS.patchEmbed) return "vision.patchEmbed";
  if (part === PARTS.merger) return "vision.merger";
  if (part === PARTS.embedding) return "language.embedding";
  if (part === PARTS.head) return "language.head";
  return part.startsWith("visual.") ? "vision.blocks" : "language.layers";
}

/** Whether a run trains this one of the model's own parameters. */
export function isTrained(config: Config): (parameter: { name: string }) => boolean {
  const pieces = trainedPieces(config);
  return ({ name }) => pieces.has(pieceOf(name));
}

/** What a run trains of a model: its adapter, or the parameters that are not frozen. From now on the other ones want no gradient. */
export function takeTrained(model: Qwen2VL, config: Config): readonly Parameter[] {
  const trained = model.adapter?.parameters ?? model.parameters.filter(isTrained(config));
  const all = new Set(trained);
  for (const parameter of model.parameters) if (!all.has(parameter)) parameter.tensor.setRequiresGrad(false);
  return trained;
}

/** Of each parameter that is trained: its learning rate, as a multiple of the run's. */
export function rateShares(config: Config): (parameter: string) => number {
  const lora = loraOf(config);
  return (name) => peakRate(lora === null ? pieceOf(name) : "lora", config.optimizer) / config.optimizer.learningRate;
}

/** `optimizer/learning_rate` of an update and, by part, those that optimizer.partRates sets. */
export function rateMetrics({ optimizer }: Config, rate: number): Metrics {
  const parts = Object.entries(optimizer.partRates).map(([name, peak]) => [
    `optimizer/learning_rate/${name}`,
    (rate * peak) / optimizer.learningRate,
  ]);
  return { "optimizer/learning_rate": rate, ...Object.fromEntries(parts) };
}
