/**
 * Groups of completions from prompts, every prompt through the model once. A token is a pure function of the weights and of the keys (seed, step,
 * sample id, completion, position); what else is sampled does not matter: exactly in float32 but for ties, in bfloat16 as far as
 * docs/decisions/0004-one-numeric-truth.md says, and exactly with `deterministic`.
 */

import { ConfigError, invariant, NumericsError } from "../errors.ts";
import type { Completion, Prompt, RolloutGroup } from "../types.ts";
import { firstCompletions } from "./draws.ts";
import { fusedDecodeFits } from "./fused-decode-plan.ts";
import { PREFILL_TOKENS } from "./prefill-packs.ts";
import type { SamplingOptions } from "./sample-token.ts";
import { emptyStats, type RolloutStats, type Sampled, type SampleEngine } from "./sampled.ts";
import type { SamplerModel, TextDecoder } from "./sampler-model.ts";
import { SlotEngine } from "./slot-engine.ts";
import { WaveEngine } from "./wave-engine.ts";

export interface SamplerOptions {
  model: SamplerModel;
  tokenizer: TextDecoder;
  /** `config.rollout`, or the like. */
  config: {
    maxConcurrent: number;
    /** Completions independent of what else is sampled, bit for bit, with one maxConcurrent, on one kind of device. */
    deterministic?: boolean;
    /** Completions go on past end tokens. */
    ignoreEos?: boolean;
  };
  /** Tokens of prompts in one prefill pass. */
  prefillTokens?: number;
  /** On CUDA: record the decode step and replay it (default). */
  cudaGraph?: boolean;
  /**
   * `fused`: continuous batching with kernels of our own for attention and drawing. `per-sequence`: the same, each completion reading its prompt for
   * itself, to compare with. `plain`: waves of completions, products and softmax, the reference. Default: fused on the CPU and where the kernels take
   * the model, else plain.
   */
  attention?: "fused" | "per-sequence" | "plain";
}

export interface RolloutOptions extends SamplingOptions {
  groupSize: number; // G, from 1 on
  maxNewTokens: number;
  seed: number;
  step: number;
  /**
   * Number of the first completion in the keys of the random draws; a second call with G here continues the groups of the first. A prompt that
   * is given twice goes on where its first group ended, so that its groups differ.
   */
  firstCompletion?: number;
  /** Ends completion `completion` (0 .. G - 1) of a prompt after so many tokens at most, 1 or more, as an end token would; default: maxNewTokens. */
  limitOf?: (prompt: number, completion: number) => number;
  /** Called with the number of completions that are done whenever some have ended. */
  onProgress?: (done: number, total: number) => void;
}

export class Sampler implements Disposable {
  /** Of the last call of rolloutGroups. */
  readonly stats: RolloutStats = emptyStats();
  private readonly options: SamplerOptions;
  private readonly stops: readonly number[];
  private readonly engine: SampleEngine;

  constructor(options: SamplerOptions) {
    const { model, tokenizer } = options;
    this.options = options;
    const ends = model.config.eosTokenIds.length > 0 ? model.config.eosTokenIds : tokenizer.eosTokenIds;
    this.stops = options.config.ignoreEos === true ? [] : ends;
    const forbidden = forbiddenIds(model.config, tokenizer);
    const lost = this.stops.find((id) => forbidden.includes(id));
    if (lost !== undefined)
      throw new ConfigError(
        `end token ${lost} can never be sampled: it stands for pictures or videos, or is none of the tokenizer's ${tokenizer.vocabSize} ids; look at eos_token_id in the model's generation_config.json or config.json, and whether the tokenizer is the model's`,
      );
    this.engine = engineFor(options, { forbidden, stops: this.stops });
  }

  /**
   * G completions for every prompt, in the order of the prompts; rewards and advantages are left empty.
   * Throws ConfigError for sampling options out of range, NumericsError if the model gives NaN.
   */
  rolloutGroups(prompts: readonly Prompt[], options: RolloutOptions): RolloutGroup[] {
    const { groupSize, maxNewTokens, seed, step, temperature, topK, topP, greedy = false } = options;
    invariant(groupSize >= 1 && maxNewTokens >= 1, "a rollout needs at least one completion of one token");
    Object.assign(this.stats, emptyStats());
    if (prompts.length === 0) return [];
    let done = 0;
    const { completions, stats } = this.engine.sample({
      ...{ prompts, groupSize, maxNewTokens, seed, step },
      firsts: firstCompletions(prompts, options),
      limitOf: limitsOf(options),
      sampling: { temperature, topK, topP, greedy },
      onEnded: (count) => {
        done += count;
        options.onProgress?.(done, prompts.length * groupSize);
      },
    });
    Object.assign(this.stats, stats, {
      promptTokens: prompts.reduce((sum, prompt) => sum + prompt.inputIds.length, 0),
      tokens: completions.flat().reduce((sum, { ids }) => sum + ids.length, 0),
    });
    return prompts.map((prompt, q) => ({
      prompt,
      completions: (completions[q] as Sampled[]).map((sampled) => this.completion(sampled, prompt)),
      rewards: [],
      rewardBreakdown: {},
      advantages: [],
    }));
  }

  /** Gives up what is kept for the next call, on CUDA. */
  [Symbol.dispose](): void {
    this.engine[Symbol.dispose]();
  }

  private completion(sampled: Sampled, prompt: Prompt): Completion {
    checkNumbers(sampled, prompt);
    const text = this.options.tokenizer.decode(sampled.ids, { skipSpecialTokens: true });
    const finish = this.stops.includes(sampled.ids.at(-1) as number) ? "stop" : "length";
    return { ...sampled, text, finish };
  }
}

/** The most tokens of each completion. */
function limitsOf({ maxNewTokens, limitOf }: RolloutOptions): (prompt: number, completion: number) => number {
  return (prompt, completion) => {
    const limit = limitOf?.(prompt, completion) ?? maxNewTokens;
    invariant(Number.isInteger(limit) && limit >= 1, `a completion has one token or more, not at most ${limit}`);
    return Math.min(limit, maxNewTokens);
  };
}

function engineFor(options: SamplerOptions, ids: { forbidden: number[]; stops: readonly number[] }): SampleEngine {
  const { model, config, prefillTokens = PREFILL_TOKENS, cudaGraph = true } = options;
  const { maxConcurrent, deterministic = false } = config;
  const onCpu = model.device === "cpu";
  const kernels = !onCpu && fusedDecodeFits(model);
  const attention = options.attention ?? (onCpu || kernels || deterministic ? "fused" : "plain");
  const common = { maxConcurrent, prefillTokens, ...ids };
  if (attention === "plain" && deterministic)
    throw new ConfigError("plain attention is not independent of the batch: deterministic needs fused attention");
  if (attention === "plain") return new WaveEngine(model, { ...common, graphs: cudaGraph && !onCpu });
  // what stands in for the kernels waits for the device and cannot be recorded
  const graphs = cudaGraph && kernels;
  return new SlotEngine(model, { ...common, deterministic, graphs, perRow: attention === "per-sequence" });
}

/**
 * Ids that are never sampled: placeholders and brackets of pictures and videos, since a completion has no pixels to put there, and rows
 * of the embedding that no token has.
 */
export function forbiddenIds(config: SamplerModel["config"], tokenizer: TextDecoder): number[] {
  const { imageTokenId, videoTokenId, visionStartTokenId, visionEndTokenId } = config;
  const vision = [imageTokenId, videoTokenId, visionStartTokenId, visionEndTokenId];
  const pad = tokenizer.encode("<|vision_pad|>"); // one id where the tokenizer has it, which config.json does not name
  const padding = Math.max(0, config.text.vocabSize - tokenizer.vocabSize);
  return [
    ...vision,
    ...(pad.length === 1 ? pad : []),
    ...Array.from({ length: padding }, (_, i) => tokenizer.vocabSize + i),
  ];
}

/** A model whose logits are not numbers would go on sampling nonsense. */
function checkNumbers({ logprobs, sampledLogprobs }: Sampled, prompt: Prompt): void {
  const position = logprobs.findIndex((p, i) => !Number.isFinite(p) || !Number.isFinite(sampledLogprobs[i]));
  if (position < 0) return;
  const details = { sampleId: prompt.sample.id, position };
  const values = [logprobs[position], sampledLogprobs[position]] as number[];
  throw new NumericsError(
    "the log-probability of a sampled token",
    values.find((p) => !Number.isFinite(p)) as number,
    details,
  );
}
