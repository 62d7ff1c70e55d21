/**
 * AdamW's moments of all parameters, flat: on the device of the weights, or on the host, from where they pass through the device in stages while
 * others are being used. What the types mean is explained in native/adamw.cc and native/adamw_element.h.
 */

import type { Config } from "../config/schema.ts";
import { Event, Stream, waitEvent } from "../torch/cuda.ts";
import { op } from "../torch/dispatch.ts";
import { copy_, slice, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Device, DType, Tensor } from "../torch/tensor.ts";
import { BLOCK, isOffloaded, STAGE_ELEMENTS, stageCount } from "./flat-layout.ts";

const pinnedZeros = op("grove::pinned_zeros");

export type MomentKind = Config["optimizer"]["moments"];

export const MOMENT_DTYPES: Readonly<Record<MomentKind, DType>> = {
  float32: "float32",
  bfloat16: "bfloat16",
  int8: "uint8", // codes
};

/** Neighbouring elements of the flat moments. */
export interface MomentTensors {
  m: Tensor; // [n]
  v: Tensor; // [n]
  mScale: Tensor | null; // float32 [n / BLOCK], of 8-bit moments
  vScale: Tensor | null;
}

export interface Moments extends Disposable {
  /** All of them, where they are kept. Up to date after settle(). */
  readonly whole: MomentTensors;
  /**
   * Calls `run` for ranges that together are all, each on the device of the weights and beginning at element `begin`: from the last to the first. None
   * crosses one of `cuts`: multiples of BLOCK, ascending, the same ones in every update.
   */
  update(run: (range: MomentTensors, begin: number) => void, cuts?: readonly number[]): void;
  /** Waits until `whole` may be read or written by the host. */
  settle(): void;
}

/** Zeros for `size` elements, a multiple of BLOCK, of weights on `device`. */
export function createMoments(
  kind: MomentKind,
  size: number,
  device: Device,
  offload: Config["optimizer"]["offload"],
): Moments {
  return isOffloaded(device, offload)
    ? new StagedMoments(kind, size, device, STAGE_ELEMENTS)
    : new ResidentMoments(kind, size, device);
}

class ResidentMoments implements Moments {
  readonly whole: MomentTensors;

  constructor(kind: MomentKind, size: number, device: Device) {
    this.whole = allocate(kind, size, (shape, dtype) => zeros(shape, { dtype, device }));
  }

  update(run: (range: MomentTensors, begin: number) => void, cuts: readonly number[] = []): void {
    if (cuts.length === 0) {
      run(this.whole, 0);
      return;
    }
    for (const [begin, end] of rangesOf(cuts, this.whole.m.numel, Number.POSITIVE_INFINITY))
      scope(() => run(part(this.whole, begin, end - begin), begin));
  }

  settle(): void {}

  [Symbol.dispose](): void {
    free(this.whole);
  }
}

/** Memory on the device for one range, and how far its use has come. */
interface Stage {
  tensors: MomentTensors;
  filled: Event | null;
  used: Event | null;
  emptied: Event | null;
}

/** Moments on the host. On CUDA two streams of their own copy to the device and back; on the CPU, for tests, copies are made in order. */
export class StagedMoments implements Moments {
  readonly whole: MomentTensors;
  readonly #size: number;
  readonly #stageElements: number;
  readonly #stages: Stage[];
  readonly #streams: { in: Stream; out: Stream } | null;

  constructor(kind: MomentKind, size: number, device: Device, stageElements: number) {
    const cuda = device !== "cpu";
    this.#size = size;
    this.#stageElements = Math.min(size, stageElements);
    this.whole = allocate(kind, size, (shape, dtype) => pinnedZeros(shape, dtype));
    const event = () => (cuda ? new Event() : null);
    this.#stages = Array.from({ length: stageCount(size, stageElements) }, () => ({
      tensors: allocate(kind, this.#stageElements, (shape, dtype) => zeros(shape, { dtype, device })),
      filled: event(),
      used: event(),
      emptied: event(),
    }));
    // The stages' memory is clear, and free of whatever had it before, when the current stream has come so far.
    for (const { emptied } of this.#stages) emptied?.record();
    this.#streams = cuda ? { in: new Stream(), out: new Stream() } : null;
  }

  update(run: (range: MomentTensors, begin: number) => void, cuts: readonly number[] = []): void {
    for (const [turn, [begin, end]] of rangesOf(cuts, this.#size, this.#stageElements).entries()) {
      const stage = this.#stages[turn % this.#stages.length] as Stage;
      const count = end - begin;
      scope(() => {
        const away = part(this.whole, begin, count);
        const here = part(stage.tensors, 0, count);
        this.#fill(stage, () => copyAll(here, away));
        run(here, begin);
        this.#empty(stage, () => copyAll(away, here));
      });
    }
  }

  /**
   * A stage is filled once what was last in it is back on the host. Stages take turns from the first one in every update, so what is read from the
   * host here was last written there from the same stage.
   */
  #fill({ filled, emptied }: Stage, copy: () => void): void {
    if (this.#streams === null) {
      copy();
      return;
    }
    this.#streams.in.wait(emptied as Event);
    this.#streams.in.run(copy);
    waitEvent((filled as Event).record(this.#streams.in));
  }

  #empty({ used, emptied }: Stage, copy: () => void): void {
    if (this.#streams === null) {
      copy();
      return;
    }
    this.#streams.out.wait((used as Event).record());
    this.#streams.out.run(copy);
    (emptied as Event).record(this.#streams.out);
  }

  settle(): void {
    this.#streams?.out.synchronize();
  }

  [Symbol.dispose](): void {
    this.settle();
    for (const { tensors, filled, used, emptied } of this.#stages) {
      free(tensors);
      for (const event of [filled, used, emptied]) event?.[Symbol.dispose]();
    }
    this.#streams?.in[Symbol.dispose]();
    this.#streams?.out[Symbol.dispose]();
    free(this.whole);
  }
}

function allocate(kind: MomentKind, size: number, make: (shape: number[], dtype: DType) => Tensor): MomentTensors {
  const moment = () => keep(make([size], MOMENT_DTYPES[kind]));
  const scale = () => (kind === "int8" ? keep(make([size / BLOCK], "float32")) : null);
  return { m: moment(), v: moment(), mScale: scale(), vScale: scale() };
}

/** [0, size) cut at `cuts`, and what is longer than `most` into pieces of that length; from the last to the first. */
function rangesOf(cuts: readonly number[], size: number, most: number): [begin: number, end: number][] {
  const ranges: [number, number][] = [];
  for (const end of [...cuts, size]) {
    for (let begin = ranges.at(-1)?.[1] ?? 0; begin < end; begin = ranges.at(-1)?.[1] as number)
      ranges.push([begin, Math.min(end, begin + most)]);
  }
  return ranges.reverse();
}

/** Views of `count` elements from `begin` on, both multiples of BLOCK. */
function part({ m, v, mScale, vScale }: MomentTensors, begin: number, count: number): MomentTensors {
  const moment = (all: Tensor) => slice(all, 0, begin, begin + count);
  const scale = (all: Tensor | null) => all && slice(all, 0, begin / BLOCK, (begin + count) / BLOCK);
  return { m: moment(m), v: moment(v), mScale: scale(mScale), vScale: scale(vScale) };
}

function copyAll(to: MomentTensors, from: MomentTensors): void {
  copy_(to.m, from.m, true);
  copy_(to.v, from.v, true);
  if (to.mScale !== null && from.mScale !== null) copy_(to.mScale, from.mScale, true);
  if (to.vScale !== null && from.vScale !== null) copy_(to.vScale, from.vScale, true);
}

function free(tensors: MomentTensors): void {
  for (const tensor of Object.values(tensors)) tensor?.free();
}
