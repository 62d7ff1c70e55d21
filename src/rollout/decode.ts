/** The plain decode loop, of one round: a token per completion and step, fixed buffers, nothing read back before the end but a rare check. */

import { CudaGraph, synchronize } from "../torch/cuda.ts";
import {
  add_,
  all,
  copy_,
  indexCopy_,
  indexSelect,
  logicalOr,
  repeatInterleave,
  reshape,
  unsqueeze,
  zeros,
} from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { fromArray, type Tensor } from "../torch/tensor.ts";
import { DecodePlan } from "./decode-plan.ts";
import type { KvCache } from "./kv-cache.ts";
import type { TokenSampler } from "./sample-token.ts";
import type { SamplerModel } from "./sampler-model.ts";

export interface RoundInput {
  model: SamplerModel;
  cache: KvCache; // prompts filled in
  sampler: TokenSampler;
  /** After each prompt's last token, [Q, V]. */
  promptLogits: Tensor;
  /** Position of the first new token of each question, [Q]. */
  nextPositions: readonly number[];
  /** One number in [0, 1) per step and completion, [N, B]. */
  uniforms: Float32Array;
  eosTokenIds: readonly number[];
  maxNewTokens: number; // N
  /** Steps between two looks at whether every completion has ended. */
  checkEvery: number;
  /** On CUDA: the step is captured once and replayed, one launch in place of hundreds. Null runs it kernel by kernel. */
  stepGraph: StepGraph | null;
}

/** Row b = q * G + g. What a completion gets after its end-of-sequence id has no meaning. */
export interface RoundOutput {
  ids: BigInt64Array; // [N, B]
  sampledLogprobs: Float32Array; // [N, B]
  logprobs: Float32Array; // [N, B]
  entropies: Float32Array; // [N, B]
  steps: number; // tokens drawn per completion, at most N
}

/** Fewest steps left for which capturing one pays. */
const STEPS_WORTH_A_GRAPH = 8;

/** The captured decode step of the current round. Captures follow each other in one memory pool, so that memory does not pile up. */
export class StepGraph implements Disposable {
  /** Time spent recording, seconds. */
  captureS = 0;
  private graph: CudaGraph | null = null;

  /** Records what `step` enqueues, in place of the graph before. */
  capture(step: () => void): CudaGraph {
    synchronize(); // a capture waits for what is under way, which is no part of it
    const started = performance.now();
    const next = new CudaGraph();
    try {
      next.capture(step, this.graph === null ? {} : { poolOf: this.graph });
    } catch (error) {
      next[Symbol.dispose]();
      throw error;
    }
    this[Symbol.dispose]();
    this.graph = next;
    this.captureS += (performance.now() - started) / 1000;
    return next;
  }

  [Symbol.dispose](): void {
    this.graph?.[Symbol.dispose]();
    this.graph = null;
  }
}

/** Samples all completions of a round. The cache's own slots are overwritten. */
export function decodeRound(input: RoundInput): RoundOutput {
  const { model, cache, maxNewTokens: N, checkEvery, stepGraph } = input;
  using state = new RoundState(input);
  scope(() => state.record(repeatInterleave(input.promptLogits, cache.shape.group, 0)));
  const advance = () =>
    scope(() => {
      state.plan.beginStep();
      const hidden = model.forward(model.embed(state.tokens, null), state.positions, state.plan);
      add_(state.positions, 1);
      add_(state.slot, 1);
      state.record(model.logits(hidden));
    });
  let graph: CudaGraph | null = null;
  let steps = 1;
  while (steps < N && !(steps % checkEvery === 0 && state.allDone())) {
    if (graph !== null) graph.replay();
    else advance();
    steps++;
    // The first step ran kernel by kernel, which loads libraries and makes their workspaces: nothing of that can be captured.
    if (graph === null && stepGraph !== null && N - steps >= STEPS_WORTH_A_GRAPH) graph = stepGraph.capture(advance);
  }
  return state.read(steps);
}

/** The tensors of a round. B = Q * G rows. */
class RoundState implements Disposable {
  readonly plan: DecodePlan;
  readonly tokens: Tensor; // [B] int64, drawn last
  readonly positions: Tensor; // [3, B] int64, of `tokens`
  readonly slot: Tensor; // [1] int64, where the cache puts `tokens`
  private readonly sampler: TokenSampler;
  private readonly drawn: Tensor; // [1] int64, tokens drawn so far
  private readonly uniforms: Tensor; // [N, B]
  private readonly isEos: Tensor; // [V] bool
  private readonly done: Tensor; // [B] bool
  private readonly ids: Tensor; // [N, B] int64
  private readonly sampledLogprobs: Tensor; // [N, B]
  private readonly logprobs: Tensor; // [N, B]
  private readonly entropies: Tensor; // [N, B]
  private readonly owned: Disposable[] = [];

  constructor({
    model,
    cache,
    sampler,
    nextPositions,
    uniforms,
    eosTokenIds,
    maxNewTokens: N,
    promptLogits,
  }: RoundInput) {
    const { device } = model;
    const G = cache.shape.group;
    const B = cache.shape.questions * G;
    const rows = Array.from({ length: B }, (_, b) => nextPositions[Math.floor(b / G)] as number);
    const isEos = new Uint8Array(promptLogits.size(1));
    for (const id of eosTokenIds) isEos[id] = 1;
    const own = <T extends Disposable>(part: T): T => {
      this.owned.push(part);
      return part;
    };
    const int = (size: number[]) => own(keep(zeros(size, { dtype: "int64", device })));
    const float = (size: number[]) => own(keep(zeros(size, { dtype: "float32", device })));
    this.sampler = sampler;
    try {
      this.tokens = int([B]);
      this.positions = own(keep(fromArray([...rows, ...rows, ...rows], [3, B], { dtype: "int64", device })));
      this.slot = int([1]);
      this.drawn = int([1]);
      this.uniforms = own(keep(fromArray(uniforms, [N, B], { device })));
      this.isEos = own(keep(fromArray(isEos, [isEos.length], { dtype: "bool", device })));
      this.done = own(keep(zeros([B], { dtype: "bool", device })));
      this.ids = int([N, B]);
      this.sampledLogprobs = float([N, B]);
      this.logprobs = float([N, B]);
      this.entropies = float([N, B]);
      this.plan = own(new DecodePlan(cache, { step: this.slot, dtype: model.dtype, staticShapes: device !== "cpu" }));
    } catch (error) {
      this[Symbol.dispose](); // out of memory half-way
      throw error;
    }
  }

  /** Draws a token per row from logits [B, V] and notes it in the next row of the outputs. */
  record(logits: Tensor): void {
    scope(() => {
      const draw = this.sampler.draw(logits, reshape(indexSelect(this.uniforms, 0, this.drawn), [-1]));
      copy_(this.tokens, draw.ids);
      indexCopy_(this.ids, 0, this.drawn, unsqueeze(draw.ids, 0));
      indexCopy_(this.sampledLogprobs, 0, this.drawn, unsqueeze(draw.sampledLogprobs, 0));
      indexCopy_(this.logprobs, 0, this.drawn, unsqueeze(draw.logprobs, 0));
      indexCopy_(this.entropies, 0, this.drawn, unsqueeze(draw.entropies, 0));
      copy_(this.done, logicalOr(this.done, indexSelect(this.isEos, 0, draw.ids)));
      add_(this.drawn, 1);
    });
  }

  /** Whether every completion has ended. Waits for the device. */
  allDone(): boolean {
    return scope(() => all(this.done).item() !== 0);
  }

  read(steps: number): RoundOutput {
    return {
      ids: this.ids.toArray() as BigInt64Array,
      sampledLogprobs: this.sampledLogprobs.toArray() as Float32Array,
      logprobs: this.logprobs.toArray() as Float32Array,
      entropies: this.entropies.toArray() as Float32Array,
      steps,
    };
  }

  [Symbol.dispose](): void {
    for (const part of this.owned.splice(0)) part[Symbol.dispose]();
  }
}
