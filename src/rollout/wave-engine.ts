/**
 * The plain way to sample: waves of completions that begin and end together, attention by products and a softmax, tokens drawn by a composition of
 * operators. The reference for slot-engine.ts, and what runs where its kernel does not take the model.
 */

import { scope } from "../torch/scope.ts";
import type { Prompt } from "../types.ts";
import { decodeRound, type RoundOutput, StepGraph } from "./decode.ts";
import { drawUniforms } from "./draws.ts";
import { availableBytes } from "./free-memory.ts";
import { KvCache } from "./kv-cache.ts";
import { type KvShape, kvDType, waveBytes } from "./kv-shape.ts";
import { PhaseClock } from "./phase-clock.ts";
import { prefillCache } from "./prefill.ts";
import { TokenSampler } from "./sample-token.ts";
import { type Sampled, type SampleEngine, type SampleRequest, type SampleResult, tokensOfSteps } from "./sampled.ts";
import type { SamplerModel } from "./sampler-model.ts";
import { planWaves, type Wave } from "./wave-scheduler.ts";

export interface WaveEngineOptions {
  maxConcurrent: number;
  prefillTokens: number;
  graphs: boolean;
  forbidden: readonly number[];
  stops: readonly number[];
}

/** A rollout in progress: what its waves read, and what they add to. */
interface WaveRun {
  request: SampleRequest;
  sampler: TokenSampler;
  clock: PhaseClock;
  completions: Sampled[][]; // [prompts][G]
  steps: number;
  rows: number; // of the largest wave
  rowSteps: number; // rows of all steps
  kvBytes: number; // of the largest wave
}

export class WaveEngine implements SampleEngine {
  private readonly model: SamplerModel;
  private readonly options: WaveEngineOptions;
  private readonly stepGraph: StepGraph | null;

  constructor(model: SamplerModel, options: WaveEngineOptions) {
    this.model = model;
    this.options = options;
    this.stepGraph = options.graphs ? new StepGraph() : null;
  }

  sample(request: SampleRequest): SampleResult {
    const { model, options, stepGraph } = this;
    const { prompts, groupSize, maxNewTokens, sampling } = request;
    const { vocabSize } = model.config.text;
    using clock = new PhaseClock(model.device);
    using sampler = new TokenSampler(vocabSize, options.forbidden, sampling, model.device);
    const waves = planWaves(
      prompts.map((prompt) => prompt.inputIds.length),
      {
        groupSize,
        maxConcurrent: options.maxConcurrent,
        maxBytes: availableBytes(model.device),
        bytesOf: (sizes) => waveBytes(this.kvShape(sizes, maxNewTokens), kvDType(model.device, model.dtype), vocabSize),
      },
    );
    const recorded = stepGraph?.captureS ?? 0;
    const run: WaveRun = {
      ...{ request, sampler, clock, completions: prompts.map(() => []) },
      ...{ steps: 0, rows: 0, rowSteps: 0, kvBytes: 0 },
    };
    for (const wave of waves) this.runWave(wave, run);
    const [wholeS, prefillS] = [clock.total(), clock.seconds("prefill")];
    const captureS = (stepGraph?.captureS ?? 0) - recorded;
    const { completions, steps, rows, rowSteps, kvBytes } = run;
    const times = { prefillS, visionS: clock.seconds("vision"), captureS, decodeS: wholeS - prefillS - captureS };
    const occupancy = rowSteps === 0 ? 0 : tokensOfSteps(completions) / rowSteps;
    return { completions, stats: { ...times, steps, rows, occupancy, kvBytes } };
  }

  /** Gives up the recorded step of the last call, on CUDA. */
  [Symbol.dispose](): void {
    this.stepGraph?.[Symbol.dispose]();
  }

  private runWave(wave: Wave, run: WaveRun): void {
    const { model, options } = this;
    const { request, clock } = run;
    const prompts = wave.questions.map((question) => request.prompts[question] as Prompt);
    const lengths = prompts.map((prompt) => prompt.inputIds.length);
    const most = wave.rounds[0]?.count ?? 0;
    const sizes = { questions: prompts.length, group: most, promptSlots: Math.max(...lengths) };
    using cache = new KvCache(this.kvShape(sizes, request.maxNewTokens), lengths, model);
    using promptLogits = clock.time("prefill", () =>
      scope(() => prefillCache(model, prompts, cache, { tokens: options.prefillTokens, clock })),
    );
    for (const { first, count } of wave.rounds) {
      const numbers = wave.questions.map((question) => (request.firsts[question] as number) + first);
      const output = decodeRound({
        model,
        cache,
        sampler: run.sampler,
        promptLogits,
        nextPositions: prompts.map((prompt) => prompt.nextPosition),
        uniforms: drawUniforms(prompts, { ...request, ...request.sampling }, numbers, most),
        eosTokenIds: options.stops,
        maxNewTokens: request.maxNewTokens,
        checkEvery: model.device === "cpu" ? 1 : 8,
        stepGraph: this.stepGraph,
      });
      const rows = prompts.length * most;
      for (const [q, question] of wave.questions.entries()) {
        for (let g = 0; g < count; g++) {
          const limit = request.limitOf(question, first + g);
          run.completions[question]?.push(this.cut(output, q * most + g, rows, limit));
        }
      }
      run.steps += output.steps - 1; // the first token is drawn from the prompt's logits
      run.rowSteps += (output.steps - 1) * rows;
      run.rows = Math.max(run.rows, rows);
      request.onEnded(prompts.length * count);
    }
    run.kvBytes = Math.max(run.kvBytes, cache.bytes);
  }

  /** Row b of a round up to its first stop token, or its limit. */
  private cut(output: RoundOutput, b: number, rows: number, limit: number): Sampled {
    const ids: number[] = [];
    while (ids.length < Math.min(output.steps, limit)) {
      const id = Number(output.ids[ids.length * rows + b]);
      ids.push(id);
      if (this.options.stops.includes(id)) break;
    }
    const column = (values: Float32Array) => Float32Array.from(ids, (_, t) => values[t * rows + b] as number);
    return {
      ids: Int32Array.from(ids),
      logprobs: column(output.logprobs),
      sampledLogprobs: column(output.sampledLogprobs),
      entropies: column(output.entropies),
    };
  }

  private kvShape(sizes: Pick<KvShape, "questions" | "group" | "promptSlots">, maxNewTokens: number): KvShape {
    const { config, device, headDim } = this.model;
    const { numLayers: layers, numKvHeads: kvHeads } = config.text;
    // On CUDA rows start at multiples of 16 bytes: products of unaligned score rows take up to five times as long.
    const align = (slots: number) => (device === "cpu" ? slots : Math.ceil(slots / 8) * 8);
    const { promptSlots, ...rest } = sizes;
    return { ...rest, layers, kvHeads, headDim, promptSlots: align(promptSlots), ownSlots: align(maxNewTokens) };
  }
}
