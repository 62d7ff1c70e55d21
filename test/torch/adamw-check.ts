/** What the CPU and the GPU tests of grove::adamw_ share: a handful of parameters in flat buffers, and steps with given gradients. */

import { op } from "../../src/torch/dispatch.ts";
import * as ops from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { type Device, type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { BLOCK, flatLayout } from "../../src/trainer/flat-layout.ts";

export const RATES = { maxNorm: 1e30, lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1 };
/** One element, less than a block, a block exactly, one more, and several thread blocks of the kernel. */
export const COUNTS = [1, 255, 256, 257, 1000, 70_001];

export interface State {
  params: Tensor[];
  starts: number[];
  keys: number[];
  decays: boolean[];
  size: number;
  low: Tensor | null;
  m: Tensor;
  v: Tensor;
  mScale: Tensor | null;
  vScale: Tensor | null;
}

export interface Kind {
  weights: "float32" | "bfloat16";
  moments: "float32" | "bfloat16" | "uint8";
}

export const KINDS: Kind[] = (["float32", "bfloat16"] as const).flatMap((weights) =>
  (["float32", "bfloat16", "uint8"] as const).map((moments) => ({ weights, moments })),
);

/** Zero moments and random weights; the same for every device. `shift`: elements by which weights miss their alignment. */
export function makeState({ weights, moments }: Kind, device: Device, counts = COUNTS, shift = 0): State {
  using generator = new Generator(5);
  const { starts, size } = flatLayout(counts);
  const flat = (dtype: DType, count = size) => ops.zeros([count], { dtype, device });
  const params = counts.map((count) => {
    const values = ops.cast(ops.randn([count + shift], { generator }), weights);
    return ops.slice(ops.to(values, { device }), 0, shift, shift + count);
  });
  const coded = moments === "uint8";
  return {
    params,
    starts,
    keys: counts.flatMap((_, i) => [i * 2_654_435_761 + 17, 4_294_967_295 - i].map((key) => key % 2 ** 32)),
    decays: counts.map((_, i) => i % 2 === 0),
    size,
    low: weights === "bfloat16" ? flat("int16") : null,
    m: flat(moments),
    v: flat(moments),
    mScale: coded ? flat("float32", size / BLOCK) : null,
    vScale: coded ? flat("float32", size / BLOCK) : null,
  };
}

/** Flat gradients of a step, heavy-tailed, and of very different size from one step to the next; 0 in the gaps. */
export function gradients(state: State, step: number, dtype: DType, device: Device): Tensor {
  using generator = new Generator(1000 + step);
  const normal = ops.randn([state.size], { generator });
  const heavy = ops.mul(ops.mul(normal, ops.exp(ops.randn([state.size], { generator }))), 10 ** ((step % 7) - 4));
  const sparse = ops.mul(heavy, ops.cast(ops.gt(ops.rand([state.size], { generator }), 0.3), "float32"));
  const inside = state.params.map(({ numel }, i) => {
    const gap = (state.starts[i + 1] ?? state.size) - (state.starts[i] as number) - numel;
    return ops.cat([ops.ones([numel]), ops.zeros([gap])], 0);
  });
  return ops.to(ops.cast(ops.mul(sparse, ops.cat(inside, 0)), dtype), { device });
}

/** Calls the operator on elements [begin, end) of the moments. */
export function step(
  name: string,
  state: State,
  grad: Tensor,
  t: number,
  {
    norm = 1,
    begin = 0,
    end = state.size,
    ...rates
  }: Partial<typeof RATES & Record<"norm" | "begin" | "end", number>> = {},
): void {
  const { maxNorm, lr, beta1, beta2, eps, weightDecay } = { ...RATES, ...rates };
  const { params, starts, keys, decays, low } = state;
  const part = (all: Tensor | null, unit: number) => all && ops.slice(all, 0, begin / unit, end / unit);
  const moments = [part(state.m, 1), part(state.v, 1), part(state.mScale, BLOCK), part(state.vScale, BLOCK)];
  const normTensor = fromArray([norm], [1], { device: grad.device });
  const settings = [normTensor, begin, maxNorm, lr, beta1, beta2, eps, weightDecay, t];
  op(name)(params, starts, keys, decays, grad, low, ...moments, ...settings);
}

/** The float32 masters of all parameters, one behind the other. */
export function masters({ params, starts, low }: State): Float32Array {
  const parts = params.map((param, i) => {
    if (low === null) return param.toArray() as Float32Array;
    const start = starts[i] as number;
    const high = ops.viewDtype(param, "int16").toArray() as Int16Array;
    const rest = ops.slice(low, 0, start, start + param.numel).toArray() as Int16Array;
    return new Float32Array(Int32Array.from(high, (bits, k) => (bits << 16) + rest[k]!).buffer);
  });
  return Float32Array.from(parts.flatMap((part) => Array.from(part)));
}

/** Moments as they are stored, codes and scales, as plain numbers. */
export function stored({ m, v, mScale, vScale }: State): number[][] {
  return [m, v, mScale, vScale].map((tensor) => tensor?.toNumbers() ?? []);
}

/** The numbers that codes of 8-bit moments stand for; written from the description in native/adamw_element.h, not from its code. */
export function decode(codes: readonly number[], scales: readonly number[], kind: "m" | "v"): number[] {
  return codes.map((code, i) => {
    const magnitude = kind === "m" ? code % 128 : code;
    const sign = kind === "m" && code >= 128 ? -1 : 1;
    const exponent = Math.floor(magnitude / 8) - (kind === "m" ? 15 : 31);
    const value = magnitude === 0 ? 0 : (1 + (magnitude % 8) / 8) * 2 ** exponent;
    return sign * value * (scales[Math.floor(i / BLOCK)] as number);
  });
}
