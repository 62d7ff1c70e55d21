/**
 * Groups of completions from prompts: every prompt through the model once, then all completions of a wave token by token. A token is a
 * pure function of the weights and of the keys (seed, step, sample id, completion, position), the batch layout does not matter: exactly in
 * float32 but for ties, in bfloat16 as far as docs/decisions/0004-one-numeric-truth.md says.
 */

import { freemem } from "node:os";
import { invariant, NumericsError } from "../errors.ts";
import { uniform } from "../random.ts";
import { memoryStats, synchronize } from "../torch/cuda.ts";
import { scope } from "../torch/scope.ts";
import type { Completion, Prompt, RolloutGroup } from "../types.ts";
import { decodeRound, type RoundOutput, StepGraph } from "./decode.ts";
import { fusedDecodeFits, KvPool } from "./fused-decode-plan.ts";
import { KvCache } from "./kv-cache.ts";
import { type KvShape, kvDType, waveBytes } from "./kv-shape.ts";
import { prefill } from "./prefill.ts";
import { type SamplingOptions, TokenSampler } from "./sample-token.ts";
import type { SamplerModel, TextDecoder } from "./sampler-model.ts";
import { planWaves, type Wave } from "./scheduler.ts";

export interface SamplerOptions {
  model: SamplerModel;
  tokenizer: TextDecoder;
  /** `config.rollout`, or the like. */
  config: { maxConcurrent: number };
  /** Tokens of prompts in one prefill pass. */
  prefillTokens?: number;
  /** On CUDA: capture the decode step and replay it (default). */
  cudaGraph?: boolean;
  /** `fused`: grove::decode_attention, one kernel; `plain`: products, softmax, products. Default: fused where the kernel takes the model. */
  attention?: "fused" | "plain";
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
  /** Called after every round with the completions that are done. */
  onProgress?: (done: number, total: number) => void;
}

/** Of the last call of rolloutGroups. */
export interface RolloutStats {
  prefillS: number; // time of prompts, pictures and videos included, seconds
  decodeS: number;
  promptTokens: number; // each prompt once
  tokens: number; // in completions, stop tokens included
  steps: number; // passes of the decode loop
  waves: number;
  kvBytes: number; // of the largest wave
}

export class Sampler implements Disposable {
  readonly stats: RolloutStats = emptyStats();
  private readonly options: SamplerOptions;
  private readonly eosTokenIds: readonly number[];
  private readonly forbidden: readonly number[];
  private readonly stepGraph: StepGraph | null;
  private readonly fused: boolean;

  constructor(options: SamplerOptions) {
    const { model, tokenizer } = options;
    this.options = options;
    this.stepGraph = model.device !== "cpu" && (options.cudaGraph ?? true) ? new StepGraph() : null;
    this.fused = options.attention === undefined ? fusedDecodeFits(model) : options.attention === "fused";
    this.eosTokenIds = model.config.eosTokenIds.length > 0 ? model.config.eosTokenIds : tokenizer.eosTokenIds;
    this.forbidden = forbiddenIds(model.config, tokenizer);
    invariant(!this.eosTokenIds.some((id) => this.forbidden.includes(id)), "a stop token may not be sampled");
  }

  /**
   * G completions for every prompt, in the order of the prompts; rewards and advantages are left empty.
   * Throws ConfigError for sampling options out of range, NumericsError if the model gives NaN.
   */
  rolloutGroups(prompts: readonly Prompt[], options: RolloutOptions): RolloutGroup[] {
    const { model, config } = this.options;
    const { groupSize, maxNewTokens } = options;
    const dtype = kvDType(model.device, model.dtype);
    invariant(groupSize >= 1 && maxNewTokens >= 1, "a rollout needs at least one completion of one token");
    Object.assign(this.stats, emptyStats());
    const groups = prompts.map(
      (prompt): RolloutGroup => ({ prompt, completions: [], rewards: [], rewardBreakdown: {}, advantages: [] }),
    );
    using tokenSampler = new TokenSampler(model.config.text.vocabSize, this.forbidden, options, model.device);
    const firsts = firstCompletions(prompts, options);
    const waves = planWaves(
      prompts.map((prompt) => prompt.inputIds.length),
      {
        groupSize,
        maxConcurrent: config.maxConcurrent,
        maxBytes: availableBytes(model.device),
        bytesOf: (sizes) => waveBytes(this.kvShape(sizes, maxNewTokens), dtype, model.config.text.vocabSize),
      },
    );
    let done = 0;
    for (const wave of waves) {
      this.runWave(wave, groups, firsts, tokenSampler, options, (completions) => {
        done += completions;
        options.onProgress?.(done, prompts.length * groupSize);
      });
    }
    return groups;
  }

  /** Gives up the captured step of the last call, on CUDA. */
  [Symbol.dispose](): void {
    this.stepGraph?.[Symbol.dispose]();
  }

  private runWave(
    wave: Wave,
    groups: readonly RolloutGroup[],
    firsts: readonly number[],
    sampler: TokenSampler,
    options: RolloutOptions,
    onRound: (completions: number) => void,
  ): void {
    const { model, prefillTokens = 8192 } = this.options;
    const own = wave.questions.map((index) => groups[index] as RolloutGroup);
    const prompts = own.map((group) => group.prompt);
    const lengths = prompts.map((prompt) => prompt.inputIds.length);
    const round = wave.rounds[0]?.count ?? 0;
    const shape = this.kvShape(
      { questions: own.length, group: round, promptSlots: Math.max(...lengths) },
      options.maxNewTokens,
    );
    using cache = this.fused ? new KvPool(shape, lengths, model) : new KvCache(shape, lengths, model);
    const started = performance.now();
    using promptLogits = scope(() => prefill(model, prompts, cache, prefillTokens));
    // On the host, while the device works on the prompts.
    const uniforms = wave.rounds.map(({ first }) => {
      const numbers = wave.questions.map((index) => (firsts[index] as number) + first);
      return drawUniforms(prompts, options, numbers, round);
    });
    waitFor(model);
    const prefilled = performance.now();
    for (const [i, { count }] of wave.rounds.entries()) {
      const output = decodeRound({
        model,
        cache,
        sampler,
        promptLogits,
        nextPositions: prompts.map((prompt) => prompt.nextPosition),
        uniforms: uniforms[i] as Float32Array,
        eosTokenIds: this.eosTokenIds,
        maxNewTokens: options.maxNewTokens,
        checkEvery: model.device === "cpu" ? 1 : 8,
        stepGraph: this.stepGraph,
      });
      own.forEach((group, q) => {
        for (let g = 0; g < count; g++) {
          const completion = this.completion(output, q * round + g, own.length * round);
          checkNumbers(completion, group.prompt);
          group.completions.push(completion);
        }
      });
      this.stats.steps += output.steps;
      onRound(own.length * count);
    }
    this.stats.prefillS += (prefilled - started) / 1000;
    this.stats.decodeS += (performance.now() - prefilled) / 1000;
    this.stats.promptTokens += lengths.reduce((sum, length) => sum + length, 0);
    this.stats.waves++;
    this.stats.kvBytes = Math.max(this.stats.kvBytes, cache.bytes);
  }

  /** Cuts row b of a round behind its first stop token. */
  private completion(output: RoundOutput, b: number, rows: number): Completion {
    const ids: number[] = [];
    let finish: Completion["finish"] = "length";
    while (ids.length < output.steps && finish === "length") {
      const id = Number(output.ids[ids.length * rows + b]);
      ids.push(id);
      if (this.eosTokenIds.includes(id)) finish = "stop";
    }
    this.stats.tokens += ids.length;
    const column = (values: Float32Array) => Float32Array.from(ids, (_, t) => values[t * rows + b] as number);
    return {
      ids: Int32Array.from(ids),
      text: this.options.tokenizer.decode(Int32Array.from(ids), { skipSpecialTokens: true }),
      sampledLogprobs: column(output.sampledLogprobs),
      logprobs: column(output.logprobs),
      finish,
    };
  }

  private kvShape(sizes: Pick<KvShape, "questions" | "group" | "promptSlots">, maxNewTokens: number): KvShape {
    const { config, device, headDim } = this.options.model;
    const { numLayers, numKvHeads } = config.text;
    // On CUDA rows start at multiples of 16 bytes: products of unaligned score rows take up to five times as long.
    const align = (slots: number) => (device === "cpu" ? slots : Math.ceil(slots / 8) * 8);
    return {
      questions: sizes.questions,
      group: sizes.group,
      layers: numLayers,
      kvHeads: numKvHeads,
      headDim,
      promptSlots: align(sizes.promptSlots),
      ownSlots: align(maxNewTokens),
    };
  }
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

/** The number of each prompt's first completion in the keys of the draws: the n-th occurrence of a sample id begins n groups later. */
export function firstCompletions(
  prompts: readonly Prompt[],
  { firstCompletion = 0, groupSize }: Pick<RolloutOptions, "firstCompletion" | "groupSize">,
): number[] {
  const seen = new Map<string, number>();
  return prompts.map(({ sample: { id } }) => {
    const occurrence = seen.get(id) ?? 0;
    seen.set(id, occurrence + 1);
    return firstCompletion + occurrence * groupSize;
  });
}

/**
 * The numbers that choose the tokens, [maxNewTokens, questions * count], in [0, 1) and exact in float32.
 * @param firsts number of the first completion of each prompt
 */
export function drawUniforms(
  prompts: readonly Prompt[],
  options: Pick<RolloutOptions, "seed" | "step" | "maxNewTokens" | "greedy">,
  firsts: readonly number[],
  count: number,
): Float32Array {
  const { seed, step, maxNewTokens, greedy = false } = options;
  const rows = prompts.length * count;
  const numbers = new Float32Array(maxNewTokens * rows);
  if (greedy) return numbers;
  for (const [q, prompt] of prompts.entries()) {
    for (let g = 0; g < count; g++) {
      const completion = (firsts[q] as number) + g;
      for (let position = 0; position < maxNewTokens; position++) {
        const u = uniform(seed, "sample", step, prompt.sample.id, completion, position);
        // 24 bits: rounding to float32 must not reach 1.
        numbers[position * rows + q * count + g] = Math.floor(u * 2 ** 24) / 2 ** 24;
      }
    }
  }
  return numbers;
}

/** A model whose logits are not numbers would go on sampling nonsense. */
function checkNumbers({ logprobs }: Completion, prompt: Prompt): void {
  const position = logprobs.findIndex((p) => !Number.isFinite(p));
  if (position < 0) return;
  const details = { sampleId: prompt.sample.id, position };
  throw new NumericsError("the log-probability of a sampled token", logprobs[position] as number, details);
}

/** Ends the asynchronous work so far, so that times can be told apart. */
function waitFor(model: SamplerModel): void {
  if (model.device !== "cpu") synchronize();
}

/** What a wave may fill: most of what is free, on the CPU half of it, since other processes want memory too. */
function availableBytes(device: SamplerModel["device"]): number {
  if (device === "cpu") return freemem() / 2;
  const { free, reserved, allocated } = memoryStats();
  return 0.8 * (free + reserved - allocated);
}

function emptyStats(): RolloutStats {
  return { prefillS: 0, decodeS: 0, promptTokens: 0, tokens: 0, steps: 0, waves: 0, kvBytes: 0 };
}
