/**
 * The plain data that flows through Grove: a question becomes a prompt, a prompt a group of completions, a group a reward and an
 * advantage each. No methods and no tensors, so that every layer (data, rollout, reward, trainer, eval) can share them.
 */

/** One part of a chat message, in the layout Qwen2-VL's chat template reads. */
export type ContentPart =
  | { type: "text"; text: string }
  | { type: "image"; image: string } // path of an image file
  | { type: "video"; video: string }; // path of a video file

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string | ContentPart[];
}

/** One question of a data set, before any file is opened. */
export interface Sample {
  /** Unique within its data set; every random draw about the sample is keyed by it. */
  id: string;
  messages: ChatMessage[]; // ends with the user's turn
  /** Ground truth as the reward reads it, e.g. `<answer>B.</answer>`; empty where there is none. */
  solution: string;
  /** The target response of an SFT record (chain of thought and answer). */
  response?: string;
  /** The record's own fields (question, options, domain, ...), passed on to reward functions and evaluation tables. */
  fields: Record<string, unknown>;
  /** Where the record came from, for error messages. */
  source: RecordPlace;
}

/** A record's place in its file, unique to it. */
export interface RecordPlace {
  file: string;
  line: number; // from 1
  /** From 1; only where several records share the line, as in a JSON list without line breaks. */
  column?: number;
}

/**
 * Patches of one image or video, flattened as Qwen2-VL's processor does it.
 * pixels: float32 [gridT * gridH * gridW, channels * temporalPatch * patch * patch], normalised; rows are ordered by
 * (t, h / merge, w / merge, h % merge, w % merge), columns by (channel, t, y, x).
 */
export interface VisionInput {
  pixels: Float32Array;
  grid: [t: number, h: number, w: number]; // in patches, before the spatial merge
}

/** A question ready for the model. */
export interface Prompt {
  sample: Sample;
  inputIds: Int32Array; // [Lp], media placeholders already expanded
  /** M-RoPE positions, axis-major: [3, Lp] as (t, h, w). */
  positions: Int32Array;
  /** First position of whatever follows the prompt: max(positions) + 1. Shared by the three axes. */
  nextPosition: number;
  images: VisionInput[]; // in the order of their placeholders
  videos: VisionInput[];
}

/** One sampled continuation of a prompt. */
export interface Completion {
  ids: Int32Array; // [Lc], the stop token included where there is one
  text: string; // decoded without special tokens
  /** Natural-log probability of each token under the distribution that was sampled (temperature, top-k, top-p applied), nats, [Lc]. */
  sampledLogprobs: Float32Array;
  /** The same under the policy itself (temperature 1, nothing cut off), nats, [Lc]. */
  logprobs: Float32Array;
  /** Entropy of the policy where each token was drawn (temperature 1, nothing cut off), nats, [Lc]. */
  entropies: Float32Array;
  /** Why it ended: an end-of-sequence id, or the limit on new tokens. */
  finish: "stop" | "length";
}

/** One question with its G completions, and what they earned. Filled in from left to right by the step. */
export interface RolloutGroup {
  prompt: Prompt;
  completions: Completion[]; // [G]
  rewards: number[]; // [G], weighted sum over the reward functions that apply; NaN where none does
  rewardBreakdown: Record<string, number[]>; // name -> [G], unweighted; NaN where a function does not apply
  /** What reward functions told besides; not there where they told nothing. */
  rewardNotes?: RewardNotes;
  /** Taken from the rewards where advantages are computed, by name, [G] each; not there where nothing is. */
  penalties?: Record<string, number[]>;
  /** What trainer.care finds, [G] each; not there where it is off. */
  care?: {
    right: boolean[]; // which completions may have a bonus
    confidences: (number | null)[]; // the reference's, of the answer; null without an answer
    bonuses: number[]; // added to the rewards where advantages are computed
  };
  advantages: number[]; // [G]
}

/** What reward functions told about a group besides its rewards. */
export interface RewardNotes {
  /** Completions for which a function gave nothing usable, by its name. */
  errors?: Record<string, number>;
  /** Numbers that functions logged, by `<function>/<name>`: those of the call in which the group was scored. */
  metrics?: Record<string, number>;
  /** Columns for completions.jsonl, by `<function>/<column>`, [G] each. */
  columns?: Record<string, unknown[]>;
}

/** What a run reports: flat names such as `reward/accuracy`, `loss/kl`, `time/rollout_s`. */
export type Metrics = Record<string, number>;
