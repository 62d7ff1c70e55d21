/** What a rank keeps of the optimizer's state: views of its buffers, by bucket and parameter. */

import type { Ranks } from "../distributed/ranks.ts";
import { reshape, slice } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { BLOCK, type BucketLayout } from "./flat-layout.ts";
import type { MomentTensors } from "./moments.ts";

/** A tensor of the optimizer's state, as a checkpoint keeps it: of a whole parameter, or of elements [begin, end) of what the whole one has. */
export interface StateEntry {
  name: string; // `<parameter>.<m, v, m_scale, v_scale or low>`
  tensor: Tensor; // in the parameter's shape where it is whole
  begin: number;
  end: number;
  isWhole: boolean;
}

/** State of those elements of a parameter that are in this rank's part of its bucket. */
interface Slot {
  weight: Tensor; // all of it
  start: number; // of the parameter, from the beginning of the part on; negative where it begins before
  key: number[];
  rate: number; // a multiple of the learning rate
  decays: boolean;
  /** Views of the moments and, of a bfloat16 weight, the low bits. */
  state: StateEntry[];
}

/** This rank's part of a bucket. */
export interface Share {
  begin: number; // in the buffers of this rank's state
  slots: Slot[]; // of the parameters that have elements in it
  grad: Tensor;
  low: Tensor | null;
  weights: Tensor | null; // the whole bucket's, where other ranks need them
}

/** Flat: the state of this rank's parts, [size / world]; the gradients of each of its parts; the weights of all, of several ranks. */
interface Buffers extends MomentTensors {
  low: Tensor | null;
  gradients: readonly Tensor[];
  weights: Tensor | null;
}

interface KeyedParameter {
  name: string;
  weight: Tensor;
  key: number[]; // words of the key of its random numbers
  rate: number; // a multiple of the learning rate
}

/** This rank's part of each bucket. */
export function sharesOf(
  parameters: readonly KeyedParameter[],
  { starts, buckets }: BucketLayout,
  { rank, world }: Pick<Ranks, "rank" | "world">,
  buffers: Buffers,
): Share[] {
  const view = (buffer: Tensor | null, from: number, to: number) => buffer && keep(slice(buffer, 0, from, to));
  return buckets.map((bucket, i) => {
    const size = bucket.size / world;
    const begin = bucket.begin / world;
    const first = bucket.begin + rank * size; // of this part, in the flat layout
    const slots = parameters.flatMap(({ name, weight, key, rate }, p) => {
      const start = (starts[p] as number) - first;
      if (start >= size || start + weight.numel <= 0) return [];
      return [
        {
          ...{ weight, start, key, rate, decays: weight.ndim >= 2 },
          state: stateOf(name, weight, start, begin, size, buffers),
        },
      ];
    });
    const weights = view(buffers.weights, bucket.begin, bucket.begin + bucket.size);
    const low = view(buffers.low, begin, begin + size);
    return { begin, slots, grad: buffers.gradients[i] as Tensor, low, weights };
  });
}

/** Of the parameter that begins at `start` of a part of `size` elements, which begins at `at` of the state's buffers. */
function stateOf(
  name: string,
  { numel, shape }: Tensor,
  start: number,
  at: number,
  size: number,
  { m, v, mScale, vScale, low }: Buffers,
): StateEntry[] {
  const begin = Math.max(0, -start);
  const end = Math.min(numel, size - start);
  const isWhole = end - begin === numel;
  const zero = at + start; // where element 0 of the parameter would be
  const view = (kind: string, buffer: Tensor): StateEntry => {
    const tensor = keep(
      scope(() => reshape(slice(buffer, 0, zero + begin, zero + end), isWhole ? shape : [end - begin])),
    );
    return { name: `${name}.${kind}`, tensor, begin, end, isWhole };
  };
  const blocks = (kind: string, scales: Tensor): StateEntry => {
    const [from, to] = [begin / BLOCK, Math.ceil(end / BLOCK)];
    const tensor = keep(slice(scales, 0, zero / BLOCK + from, zero / BLOCK + to));
    return { name: `${name}.${kind}`, tensor, begin: from, end: to, isWhole };
  };
  const state = [view("m", m), view("v", v)];
  if (mScale !== null) state.push(blocks("m_scale", mScale));
  if (vScale !== null) state.push(blocks("v_scale", vScale));
  if (low !== null) state.push(view("low", low));
  return state;
}

/** Neighbouring moments of one learning rate: elements from `at` on of a share. */
interface RateRun extends MomentTensors {
  rate: number;
  at: number;
}

/** The moments of elements from `begin` on of a share, cut where the learning rate changes; views in the caller's scope. */
export function* byRate({ slots }: Share, moments: MomentTensors, begin: number): Generator<RateRun> {
  const end = begin + moments.m.numel;
  const firsts = slots.filter(({ rate }, i) => i === 0 || rate !== slots[i - 1]?.rate);
  for (const [i, { rate, start }] of firsts.entries()) {
    const from = Math.max(begin, i === 0 ? 0 : start);
    const to = Math.min(end, firsts[i + 1]?.start ?? end);
    if (from >= to) continue;
    const cut = (tensor: Tensor, unit: number) =>
      from === begin && to === end ? tensor : slice(tensor, 0, (from - begin) / unit, (to - begin) / unit);
    const scales = (tensor: Tensor | null) => tensor && cut(tensor, BLOCK);
    const { m, v, mScale, vScale } = moments;
    yield { rate, at: from, m: cut(m, 1), v: cut(v, 1), mScale: scales(mScale), vScale: scales(vScale) };
  }
}

/** The first arguments of grove::adamw_. */
export function segments(slots: readonly Slot[]) {
  return [
    slots.map(({ weight }) => weight),
    slots.map(({ start }) => start),
    slots.flatMap(({ key }) => key),
    slots.map(({ decays }) => decays),
  ];
}

/** Frees the views. */
export function freeShare({ slots, low, weights }: Share): void {
  for (const { state } of slots) for (const { tensor } of state) tensor.free();
  low?.free();
  weights?.free();
}
