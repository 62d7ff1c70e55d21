/**
 * Every knob of Grove, declared, described and defaulted once. YAML files, `--set`, the code and the logs use these names;
 * docs/config.md is generated from this file. Source of a default in brackets: [seed] = TencentARC/SEED-Bench-R1, [HF] = transformers.
 */

import { z } from "zod";
import { algorithmKnobs, resolveAlgorithm } from "./algorithm.ts";
import { bestKnobs } from "./best-checkpoints.ts";
import { evaluation } from "./evaluation.ts";
import { failureKnobs } from "./failure.ts";
import { adapterKnobs, freezeKnobs, loraKnobs, rateKnobs } from "./lora.ts";
import { fraction, positive, temperature, topShare } from "./numbers.ts";
import { rendered, tinyModel } from "./rendered.ts";
import { rewardFunction } from "./rewards.ts";

const dataSource = z.strictObject({
  file: z.string().meta({ description: "File of records: JSON lines, or for longvideobench a JSON list." }),
  mediaRoot: z
    .string()
    .optional()
    .meta({ description: "Folder that media paths are relative to; default: the file's folder." }),
  format: z.enum(["seed-bench-r1", "seed-bench-r1-sft", "longvideobench", "generic", "chat"]).meta({
    description:
      "Record layout: the seed's questions (training and validation), the seed's SFT records with a chain of thought, LongVideoBench's list, plain records with question, options, answer, video, image, or chats with messages.",
  }),
  limit: positive().optional().meta({ description: "Use only the first n records." }),
});

const evalSource = dataSource.extend({
  benchmark: z.enum(["seed-bench-r1-L1", "seed-bench-r1-L2", "seed-bench-r1-L3", "longvideobench"]).optional().meta({
    description:
      "The published benchmark these questions are, whole and unchanged: its published figures are then printed beside the results.",
  }),
});

const model = z.strictObject({
  path: z.string().meta({
    description: "Hugging Face folder: config.json, tokenizer, processor and (unless init is random) safetensors.",
  }),
  init: z.enum(["pretrained", "random"]).default("pretrained").meta({
    description: "Read the weights, or draw them from N(0, initializer_range) with the run's seed.",
  }),
  ...adapterKnobs,
  freezeVision: z.boolean().default(false).meta({ description: "Keep the vision tower as it is [seed: trained]." }),
  recompute: z.enum(["auto", "none", "selective", "layer"]).default("auto").meta({
    description:
      "What the backward computes again: nothing; selective: norms and the like and, where memory is short, the MLP's first product; or whole layers. auto: as little as fits the device, chosen for each pack and logged. The results are the same bits.",
  }),
});

const data = z.strictObject({
  train: z.array(dataSource).default([]).meta({ description: "Training questions; several files are joined." }),
  eval: z
    .record(z.string(), evalSource)
    .default({})
    .meta({ description: "Evaluation sets by level, e.g. L1, L2, L3." }),
  fps: z.number().positive().default(2).meta({ description: "Frames sampled per second of video [seed]." }),
  minFrames: positive().default(4).meta({ description: "Fewest frames per video [seed]." }),
  maxFrames: positive().default(16).meta({ description: "Most frames per video [seed]." }),
  minPixels: positive()
    .default(3136)
    .meta({ description: "Fewest pixels of a resized picture, when no fixed size is set [Qwen2-VL]." }),
  maxPixels: positive()
    .default(12845056)
    .meta({ description: "Most pixels of a resized picture, when no fixed size is set [Qwen2-VL]." }),
  resizedHeight: positive()
    .optional()
    .meta({ description: "Fixed height in pixels, rounded to a multiple of patch x merge [seed: 256, hence 252]." }),
  resizedWidth: positive().optional().meta({ description: "Fixed width in pixels [seed: 256, hence 252]." }),
  maxPromptTokens: positive().default(8192).meta({
    description: "A longer prompt is a bad sample; media tokens are never cut [seed: 8192, cut on the left].",
  }),
  onBadSample: z
    .enum(["error", "skip"])
    .default("error")
    .meta({ description: "A broken video or record stops the run, or is counted, logged and skipped." }),
  maxBadSamples: z.number().int().nonnegative().default(100).meta({
    description: "With skip: more bad samples than this, in all sets of a run and over its resumes, stop it.",
  }),
  workers: z.number().int().positive().default(2).meta({ description: "Threads that decode and resize media." }),
  prefetch: z.number().int().nonnegative().default(2).meta({ description: "Steps whose prompts are prepared ahead." }),
  cacheDir: z.string().default("cache/frames").meta({ description: "Folder of decoded frames (uint8)." }),
  cacheGib: z
    .number()
    .nonnegative()
    .default(8)
    .meta({ description: "Size limit of that folder in GiB, oldest use dropped first; 0 = no cache." }),
});

const rollout = z.strictObject({
  groupSize: z.number().int().min(2).default(8).meta({ description: "Completions per question, G [seed: 8]." }),
  maxNewTokens: positive().default(256).meta({ description: "Longest completion in tokens [seed: 256]." }),
  temperature: temperature("rollout.topK: 1").meta({ description: "Divides the logits before sampling [seed: 1]." }),
  topK: z.number().int().nonnegative().default(0).meta({
    description: "Sample among the k likeliest tokens; 0 = all [seed: 50, by Hugging Face's hidden default].",
  }),
  topP: topShare()
    .default(1)
    .meta({ description: "Sample among the likeliest tokens that hold this probability; 1 = all [seed: 1]." }),
  maxConcurrent: positive().default(256).meta({ description: "Most completions decoded at the same time." }),
  deterministic: z.boolean().default(false).meta({
    description:
      "Completions do not depend, bit for bit, on what else is sampled with them: prompts are computed one by one, and every step has rollout.maxConcurrent rows, rounded up to 8.",
  }),
  ignoreEos: z
    .boolean()
    .default(false)
    .meta({ description: "Go on past end tokens: every completion has rollout.maxNewTokens tokens. For timings." }),
});

/** Quirks of the seed's code, for runs that must be compared with its figures. docs/seed-bench-r1.md says what each one does. */
const compat = z.strictObject({
  hiddenTopK: z.boolean().default(false).meta({
    description:
      "Rollouts draw among the 50 likeliest tokens, or fewer where rollout.topK says so, while the loss scores the whole distribution [seed: by Hugging Face's hidden default]. Sets rollout.topK.",
  }),
  unmaskedSecondEos: z.boolean().default(false).meta({
    description:
      "A completion that ends by another end token than the first (Qwen2-VL: 151643, not 151645) counts in the loss up to the longest completion of its group, filled up with the pad token [seed: its mask knows the first end token only].",
  }),
  firstLetterReward: z.boolean().default(false).meta({
    description:
      "Accuracy compares the first character of the first answer block with the gold letter, so that Above counts as A [seed].",
  }),
});

const trainer = z.strictObject({
  steps: positive().optional().meta({ description: "Updates to make; default: epochs over the data." }),
  epochs: z
    .number()
    .positive()
    .default(1)
    .meta({ description: "Passes over the data when steps is not set [seed: 1]." }),
  questionsPerStep: positive()
    .default(8)
    .meta({ description: "Questions (GRPO) or records (SFT) per update [seed: 8 GPUs x 1]." }),
  iterations: positive().default(1).meta({
    description:
      "Updates made from one batch of completions, mu; above 1 ratios are no longer 1, and are clipped [seed: 1].",
  }),
  ...algorithmKnobs,
  ...freezeKnobs,
  sharedPrefix: z
    .boolean()
    .default(true)
    .meta({ description: "Compute each prompt once per group; false: once per completion, the plain path." }),
  tokensPerPack: positive()
    .default(8192)
    .meta({ description: "Token budget of one forward and backward pass; a larger group makes a pack of its own." }),
  saveEvery: z
    .number()
    .int()
    .nonnegative()
    .default(100)
    .meta({ description: "Steps between checkpoints; 0 = only at the end." }),
  saveFinal: z.boolean().default(true).meta({
    description:
      "Save when the run ends, and write the trained model; false: metrics are all that it leaves behind its last periodic checkpoint.",
  }),
  keepLast: positive().default(2).meta({ description: "Checkpoints kept." }),
  ...bestKnobs,
  evalEvery: z
    .number()
    .int()
    .nonnegative()
    .default(0)
    .meta({ description: "Steps between evaluations during training; 0 = none." }),
  evalLimit: positive().default(64).meta({ description: "Questions per level in an evaluation during training." }),
  logCompletions: z
    .number()
    .int()
    .nonnegative()
    .default(2)
    .meta({ description: "Groups per step written to completions.jsonl." }),
  traceSteps: z.array(positive()).default([]).meta({
    description: "Steps, counted from 1, that leave a trace of kernels (chrome://tracing) in the run folder.",
  }),
});

const decay = () => z.number().min(0).lt(1);

const optimizer = z.strictObject({
  learningRate: z
    .number()
    .positive()
    .default(1e-6)
    .meta({ description: "Peak learning rate [seed: 1e-6 GRPO, 2e-5 SFT]." }),
  ...rateKnobs,
  schedule: z
    .enum(["linear", "cosine", "constant"])
    .default("linear")
    .meta({ description: "Decay to 0 after the warm-up, or none [seed: linear GRPO, cosine SFT]." }),
  warmupFraction: fraction()
    .default(0)
    .meta({ description: "Share of the steps over which the rate rises from 0 [seed: 0 GRPO, 0.1 SFT]." }),
  beta1: decay().default(0.9).meta({ description: "AdamW's first moment decay [HF]." }),
  beta2: decay().default(0.999).meta({ description: "AdamW's second moment decay [HF]." }),
  eps: z.number().positive().default(1e-8).meta({ description: "AdamW's epsilon [HF]." }),
  weightDecay: z
    .number()
    .nonnegative()
    .default(0)
    .meta({ description: "Decoupled weight decay, on matrices only [seed: 0]." }),
  maxGradNorm: z
    .number()
    .positive()
    .default(1)
    .meta({ description: "Gradients are scaled down to this global norm [HF: 1.0]." }),
  moments: z.enum(["float32", "bfloat16", "int8"]).default("float32").meta({
    description:
      "How AdamW keeps its two moments: 8, 4 or 2 bytes a weight. Those of fewer bits are rounded at random; int8 are codes with a scale for every 256 weights. A run keeps the type it began with.",
  }),
  offload: z.enum(["none", "cpu"]).default("none").meta({
    description:
      "cpu keeps the moments in host memory and copies them through the GPU in every update; changes no result. Nothing to do where device is cpu.",
  }),
});

const distributed = z.strictObject({
  ...failureKnobs,
  shardGradients: z.boolean().default(false).meta({
    description:
      "Every rank keeps its part of the gradients alone, instead of all of them: less memory, and each pass's gradients travel, not each update's. One rank has all.",
  }),
  shardReference: z.boolean().default(false).meta({
    description:
      "The reference policy's weights are cut over the ranks; its passes gather them, a layer at a time, while the layer before computes. The same log-probabilities. One rank has all.",
  }),
});

/** The seed leaves top_k unset, and transformers' default fills in this. */
const HIDDEN_TOP_K = 50;

/** Every knob as it may be set. */
export const knobs = z.strictObject({
  seed: z.number().int().nonnegative().default(42).meta({ description: "Key of every random draw [seed: 42]." }),
  device: z
    .string()
    .regex(/^(cpu|cuda(:\d+)?)$/, "cpu, cuda or cuda:N")
    .default("cpu")
    .meta({ description: "cpu, cuda or cuda:N." }),
  dtype: z
    .enum(["float32", "bfloat16"])
    .default("bfloat16")
    .meta({ description: "Weights and activations; the optimizer always keeps a float32 master." }),
  threads: z.number().int().nonnegative().default(0).meta({ description: "CPU threads of libtorch; 0 = all cores." }),
  deterministic: z.boolean().default(false).meta({
    description:
      "Sums on a GPU are added up in a fixed order, so that the same run, resumed or not, gives the same bits on one kind of GPU. Costs time: attention's backward pass on Hopper then takes the library's kernels.",
  }),
  runDir: z
    .string()
    .default("runs/latest")
    .meta({ description: "Folder for config, metrics, completions, log and checkpoints." }),
  model,
  lora: loraKnobs,
  data: data.prefault({}),
  rollout: rollout.prefault({}),
  rewards: z
    .array(rewardFunction)
    .min(1)
    .prefault([{ name: "accuracy" }])
    .meta({ description: "Reward functions, summed by weight [seed: accuracy alone]." }),
  trainer: trainer.prefault({}),
  optimizer: optimizer.prefault({}),
  eval: evaluation.prefault({}),
  distributed: distributed.prefault({}),
  compat: compat.prefault({}),
  rendered: rendered.prefault({}),
  tinyModel: tinyModel.prefault({}),
});

/** What compat switches and the choice of a loss imply is written into the knobs they stand for, so that the resolved config shows it. */
export const configSchema = knobs.transform((config) => {
  const { rollout, compat } = config;
  const inRange = rollout.topK > 0 && rollout.topK <= HIDDEN_TOP_K;
  return {
    ...config,
    rollout: compat.hiddenTopK && !inRange ? { ...rollout, topK: HIDDEN_TOP_K } : rollout,
    trainer: resolveAlgorithm(config.trainer, rollout.maxNewTokens),
  };
});

export type Config = z.infer<typeof configSchema>;
export type DataSource = z.infer<typeof dataSource>;
