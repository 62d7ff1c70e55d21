/** Knobs of low-rank adapters (LoRA, arXiv:2106.09685), of what is trained and how fast; and which of them cannot go together. */

import { z } from "zod";
import type { Config } from "./schema.ts";

/** Linear layers that an adapter may go beside, by the part of the model, by the names that PEFT knows them by. */
export const LORA_TARGETS = {
  language: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
  vision: ["qkv", "proj", "fc1", "fc2"],
} as const;
const LORA_PARTS = ["language", "vision"] as const;
const ALL_TARGETS = LORA_PARTS.flatMap((part) => [...LORA_TARGETS[part]]);

/** Parts of a model as they are frozen and given learning rates, the whole of each before its pieces. */
const GROUPS = {
  vision: ["vision.patchEmbed", "vision.blocks", "vision.merger"],
  language: ["language.embedding", "language.layers", "language.head"],
} as const;
const GROUP_NAMES = ["vision", ...GROUPS.vision, "language", ...GROUPS.language] as const;

export type Piece = (typeof GROUPS)[keyof typeof GROUPS][number];
export const PIECES: readonly Piece[] = [...GROUPS.vision, ...GROUPS.language];
const RATE_NAMES = [...GROUP_NAMES, "lora"] as const;

/** What `lora` resolves to. */
export interface LoraKnobs {
  rank: number;
  alpha: number;
  dropout: number;
  rslora: boolean;
  targets: readonly string[];
}

/** The section `lora`: there is an adapter where it is set. */
export const loraKnobs = z
  .strictObject({
    rank: z.number().int().positive().default(16).meta({ description: "Rank of the adapter's matrices." }),
    alpha: z.number().positive().default(32).meta({
      description: "What the adapter adds is scaled by alpha / rank, with rslora by alpha / sqrt(rank).",
    }),
    dropout: z.number().min(0).lt(1).default(0).meta({
      description:
        "Share of an adapter's inputs that are dropped in the passes of an update, the rest scaled up. Sampling drops none: rollout/logprob_gap_mean is no longer 0 then.",
    }),
    parts: z
      .array(z.enum(LORA_PARTS))
      .min(1)
      .default(["language"])
      .meta({ description: "What has adapters; all else is frozen." }),
    targets: z
      .array(z.enum(ALL_TARGETS as [string, ...string[]]))
      .min(1)
      .optional()
      .meta({
        follows: "all of `lora.parts`",
        description:
          "Linear layers with an adapter: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj of the language model; qkv, proj, fc1, fc2 of the vision tower's blocks.",
      }),
    rslora: z.boolean().default(false).meta({ description: "Rank-stabilised scaling [arXiv:2312.03732]." }),
    path: z.string().optional().meta({
      description:
        "Folder of an adapter in PEFT's layout to go on from, of this rank, alpha and targets; default: a new one, which adds nothing yet.",
    }),
  })
  .optional();

/** Part of `model`. */
export const adapterKnobs = {
  adapter: z.string().optional().meta({
    description:
      "Folder of an adapter in PEFT's layout that is added to the weights as they are read: the model is what merging gives. With `lora`, the frozen base. A model.path that is such a folder is read as the model that it names and this.",
  }),
};

/** Part of `trainer`. */
export const freezeKnobs = {
  freeze: z.array(z.enum(GROUP_NAMES)).default([]).meta({
    description:
      "Parts that are not trained and take no gradient and no moments: vision (as model.freezeVision) or vision.patchEmbed, vision.blocks, vision.merger; language or language.embedding, language.layers, language.head (with the final norm).",
  }),
};

/** Part of `optimizer`. */
export const rateKnobs = {
  partRates: z.partialRecord(z.enum(RATE_NAMES), z.number().positive()).default({}).meta({
    description:
      "Peak learning rates of parts, in the names of trainer.freeze or `lora`, e.g. {vision: 1e-7, vision.merger: 1e-6}; the narrowest name counts, optimizer.learningRate where there is none. Warm-up and decay are the same for all.",
  }),
};

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

type Refuse = (wrong: boolean, knob: string, problem: string) => void;

export function checkTrained(config: Config, refuse: Refuse): void {
  const { lora, model, trainer, optimizer, distributed } = config;
  refuse(
    lora === undefined && trainedPieces(config).size === 0,
    "trainer.freeze",
    "every part is frozen: there is nothing to train",
  );
  const trained = trainedPieces(config);
  for (const name of Object.keys(optimizer.partRates)) {
    const isUsed = name === "lora" ? lora !== undefined : [...trained].some((piece) => covers(name, piece));
    refuse(
      !isUsed,
      `optimizer.partRates.${name}`,
      name === "lora"
        ? "there is no adapter to train: set lora.rank"
        : lora === undefined
          ? "this part is frozen"
          : "with lora all weights of the model are frozen; the rate of the adapter is that of lora",
    );
  }
  if (lora === undefined) return;

  for (const part of LORA_PARTS) {
    const ofPart = (lora.targets ?? []).filter((target) => (LORA_TARGETS[part] as readonly string[]).includes(target));
    const isAsked = lora.parts.includes(part);
    refuse(
      !isAsked && ofPart.length > 0,
      "lora.targets",
      `${ofPart.join(", ")} belong to ${part}, which lora.parts does not name; it has ${LORA_TARGETS[lora.parts[0] as "language"].join(", ")}`,
    );
    refuse(
      isAsked && lora.targets !== undefined && ofPart.length === 0,
      "lora.targets",
      `none of ${part}, which lora.parts names; it has ${LORA_TARGETS[part].join(", ")}`,
    );
  }
  refuse(
    trainer.freeze.length > 0,
    "trainer.freeze",
    "with lora all weights of the model are frozen, and there is nothing left to freeze; lora.parts says what has an adapter",
  );
  refuse(
    model.freezeVision && lora.parts.includes("vision"),
    "model.freezeVision",
    "lora.parts names vision, whose features would change with the adapter",
  );
  refuse(
    model.recompute === "selective",
    "model.recompute",
    "a layer with an adapter keeps all or is computed again as a whole; set auto, none or layer",
  );
  refuse(
    trainer.referenceEvery > 0,
    "trainer.referenceEvery",
    "with lora the reference is the model without its adapter, which does not move",
  );
  refuse(
    distributed.shardReference,
    "distributed.shardReference",
    "with lora the reference is the model without its adapter and takes no memory that could be shared out",
  );
}

/** Whether a name of a part is that of a piece or of the part that it belongs to. */
function covers(name: string, piece: Piece): boolean {
  return name === piece || piece.startsWith(`${name}.`);
}
