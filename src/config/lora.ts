/** Knobs of low-rank adapters (LoRA, arXiv:2106.09685), of what is trained and how fast. */

import { z } from "zod";

/** Linear layers that an adapter may go beside, by the part of the model, by the names that PEFT knows them by. */
export const LORA_TARGETS = {
  language: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
  vision: ["qkv", "proj", "fc1", "fc2"],
} as const;
export const LORA_PARTS = ["language", "vision"] as const;
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
