/** One call of grove::sample_tokens beside the plain composition of operators, on any device. */

import { normal } from "../../src/random.ts";
import { philoxUniform, sampleKey } from "../../src/rollout/philox.ts";
import { type SamplingOptions, type SlotState, TokenSampler } from "../../src/rollout/sample-token.ts";
import { scope } from "../../src/torch/scope.ts";
import { type Device, type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { edgeDistance } from "./edges.ts";

export const plain: SamplingOptions = { temperature: 1, topK: 0, topP: 1 };
export const greedy: SamplingOptions = { ...plain, greedy: true };

/** Ways to draw, with names. */
export const WAYS: [string, SamplingOptions][] = [
  ["the plain softmax", plain],
  ["greedy", greedy],
  ["temperature 0.7", { ...plain, temperature: 0.7 }],
  ["top-k 5", { ...plain, temperature: 1.3, topK: 5 }],
  ["top-k 1", { ...plain, topK: 1 }],
  ["more top-k than ids", { ...plain, topK: 1_000_000 }],
  ["top-p 0.8", { ...plain, topP: 0.8 }],
  ["top-p 0", { ...plain, topP: 0 }],
  ["top-k 40, top-p 0.95, temperature 1.1", { temperature: 1.1, topK: 40, topP: 0.95 }],
];

/** Slots that have drawn `drawn` tokens each, with the keys of completions 0, 1, ...; outputs are filled with -1. */
export function slotState(drawn: readonly number[], room: number, device: Device): SlotState {
  const slots = drawn.length;
  const ints = (values: Int32Array | Float64Array | number[], shape: number[], dtype: DType = "int32") =>
    fromArray(values, shape, { dtype, device });
  const output = (dtype: DType) => ints(new Float64Array(slots * room).fill(-1), [slots, room], dtype);
  return {
    key: ints(Int32Array.from(drawn.flatMap((_, s) => sampleKey(7, 0, "q", s))), [slots, 2]),
    limit: ints(new Int32Array(slots).fill(room), [slots]),
    tokens: ints(new Int32Array(slots).fill(-1), [slots], "int64"),
    ropePositions: ints(
      Array.from({ length: 3 * slots }, (_, i) => 100 * i),
      [3, slots],
      "int64",
    ),
    ownLength: ints(
      Int32Array.from(drawn, (n) => n - 1),
      [slots],
    ),
    done: ints(new Int32Array(slots), [slots]),
    ids: output("int32"),
    logprobs: output("float32"),
    sampledLogprobs: output("float32"),
    entropies: output("float32"),
  };
}

export interface Case {
  logits: Tensor; // [R, V]
  options: SamplingOptions;
  forbidden: readonly number[];
}

/** Of each row: the token the operator draws for position 5 of a completion, and what it says about it. */
export function drawByOperator({ logits, options, forbidden }: Case, slots = logits.size(0)) {
  return scope(() => {
    const [rows, vocab] = logits.shape as [number, number];
    const state = slotState(new Array<number>(slots).fill(5), 8, logits.device);
    const each = fromArray(
      Int32Array.from({ length: slots }, (_, i) => i),
      [slots],
      { dtype: "int32", device: logits.device },
    );
    const source = fromArray(
      Int32Array.from({ length: slots }, (_, i) => i % rows),
      [slots],
      { dtype: "int32", device: logits.device },
    );
    using sampler = new TokenSampler(vocab, forbidden, options, logits.device);
    sampler.advance(logits, source, each, state);
    const column = (x: Tensor) => x.toNumbers().filter((_, i) => i % 8 === 5);
    return {
      ids: column(state.ids),
      logprobs: column(state.logprobs),
      sampledLogprobs: column(state.sampledLogprobs),
      entropies: column(state.entropies),
    };
  });
}

/** The same by TokenSampler.draw, with the uniforms of the same keys. */
export function drawByComposition({ logits, options, forbidden }: Case) {
  return scope(() => {
    const [rows, vocab] = logits.shape as [number, number];
    const uniforms = Array.from({ length: rows }, (_, s) => philoxUniform(sampleKey(7, 0, "q", s), 5));
    using sampler = new TokenSampler(vocab, forbidden, options, logits.device);
    const draw = sampler.draw(logits, fromArray(uniforms, [rows], { device: logits.device }));
    return {
      ids: draw.ids.toNumbers(),
      logprobs: draw.logprobs.toNumbers(),
      entropies: draw.entropies.toNumbers(),
      sampledLogprobs: draw.sampledLogprobs.toNumbers(),
    };
  });
}

/** How near an edge float32 sums over some thousand ids may come by rounding. */
const ROUNDING = 1e-5;

/** The rows whose draws, those of drawByOperator for as many slots, rounding decides (edges.ts). */
export function atEdges({ logits, options, forbidden }: Case): Set<number> {
  const [rows, vocab] = logits.shape as [number, number];
  const all = logits.toNumbers();
  const distanceOf = (row: number) => {
    const own = all.slice(row * vocab, (row + 1) * vocab);
    for (const id of forbidden) own[id] = Number.NEGATIVE_INFINITY;
    return edgeDistance(own, options, philoxUniform(sampleKey(7, 0, "q", row), 5), true);
  };
  return new Set(Array.from({ length: rows }, (_, row) => row).filter((row) => distanceOf(row) < ROUNDING));
}

/** [rows, vocab] normal numbers of the given spread; the same on every machine. */
export function normalLogits(rows: number, vocab: number, spread: number, dtype: DType, device: Device): Tensor {
  const values = Float32Array.from({ length: rows * vocab }, (_, i) => spread * normal("logits", vocab, i));
  return fromArray(values, [rows, vocab], { dtype, device });
}

/** Entropy of the softmax of one row, nats, in float64. */
export function entropyOf(row: readonly number[]): number {
  const max = Math.max(...row);
  const weights = row.map((x) => Math.exp(x - max));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.reduce((sum, w) => sum - (w === 0 ? 0 : (w / total) * Math.log(w / total)), 0);
}

/** Chi-square of counts against probabilities, and its 99.99 % quantile (Wilson-Hilferty). */
export function chiSquare(counts: readonly number[], probabilities: readonly number[]) {
  const n = counts.reduce((a, b) => a + b, 0);
  let statistic = 0;
  let freedom = -1;
  probabilities.forEach((p, i) => {
    if (p === 0) {
      if (counts[i] !== 0) statistic = Number.POSITIVE_INFINITY;
      return;
    }
    statistic += ((counts[i] as number) - n * p) ** 2 / (n * p);
    freedom++;
  });
  return { statistic, limit: freedom * (1 - 2 / (9 * freedom) + 3.72 * Math.sqrt(2 / (9 * freedom))) ** 3 };
}
