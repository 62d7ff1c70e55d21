/** How large the buffers of a rollout by slots are; no tensor here, so that a dry run can ask without libtorch. */

import { ConfigError } from "../errors.ts";
import type { Device, DType } from "../torch/tensor.ts";

/** Letters as elsewhere: R rows, S slots, N tokens at most in each, G completions of a prompt. */
export interface SlotShape {
  rows: number; // R, of every step
  slots: number; // S, completions at a time, those that are paused included
  ownSlots: number; // N
  group: number; // G
  seats: number; // prompts at a time
  arenaTokens: number; // of all prompts at a time
}

/** What the sizes of a model are, as far as they count here. */
export interface ModelSizes {
  layers: number;
  kvHeads: number;
  headDim: number;
  vocabSize: number;
  device: Device;
  dtype: DType;
}

export interface SlotRequest {
  promptLengths: readonly number[]; // not empty
  groupSize: number;
  maxNewTokens: number;
  /** Most rows of a step. */
  maxConcurrent: number;
  /** As many rows as that, however few completions there are: products then always have one number of rows. */
  fixedRows: boolean;
}

/**
 * Rows come in multiples of this on CUDA, where tiles of a product are that high, and wherever their number is fixed: libraries on the CPU deal tiles of
 * rows out to threads too, and what is left over is summed in another order, so that a row's bits would depend on its place.
 */
const ROW_ALIGNMENT = 8;
/** Slots for how many times the rows, where there are as many completions and memory for them. */
const SLOTS = 4;
/** Seats and room for how many times the prompts that fill the slots: groups that are about to end hold theirs for a few stragglers. */
const SEATS = 2;

/**
 * Buffers for a rollout in at most `availableBytes`: as many rows as completions, as wished and as fit together with the prompts that fill them, then
 * more slots with their prompts, then room for more prompts. One prompt and a few rows are always let through.
 * @throws ConfigError when the number of rows is fixed and they do not fit
 */
export function planSlots(request: SlotRequest, sizes: ModelSizes, availableBytes: number): SlotShape {
  const { groupSize, maxNewTokens, maxConcurrent, fixedRows } = request;
  const lengths = [...request.promptLengths].sort((a, b) => b - a);
  const completions = lengths.length * groupSize;
  const step = sizes.device === "cpu" && !fixedRows ? 1 : ROW_ALIGNMENT;
  const shapeOf = (rows: number, slots: number, room: number): SlotShape => ({
    rows,
    slots,
    ownSlots: maxNewTokens,
    group: groupSize,
    seats: Math.min(lengths.length, slots, SEATS * Math.ceil(slots / groupSize)),
    arenaTokens: sum(lengths.slice(0, Math.max(1, Math.ceil((room * slots) / groupSize)))),
  });
  const fits = (shape: SlotShape) => slotBytes(shape, sizes) <= availableBytes;
  const slotsFor = (rows: number) => Math.min(rows, completions);

  let rows = Math.ceil((fixedRows ? maxConcurrent : Math.min(maxConcurrent, completions)) / step) * step;
  if (fixedRows && !fits(shapeOf(rows, slotsFor(rows), 0))) {
    throw new ConfigError(
      `rollout.deterministic makes steps of ${rows} rows always, and there is no memory for so many: lower rollout.maxConcurrent`,
      { rows, availableBytes },
    );
  }
  while (!fixedRows && rows > step && !fits(shapeOf(rows, slotsFor(rows), 1))) rows -= step;
  let slots = Math.min(SLOTS * rows, completions);
  while (slots > slotsFor(rows) && !fits(shapeOf(rows, slots, 1))) slots -= Math.min(step, slots - slotsFor(rows));

  const least = shapeOf(rows, slots, 0);
  const most = shapeOf(rows, slots, SEATS);
  const left = Math.floor((availableBytes - slotBytes(least, sizes)) / tokenBytes(sizes));
  const more = Math.max(0, Math.min(most.arenaTokens - least.arenaTokens, left));
  return { ...least, arenaTokens: least.arenaTokens + more };
}

/** Bytes of all buffers: keys and values, and what drawing tokens takes. */
export function slotBytes(shape: SlotShape, sizes: ModelSizes): number {
  const item = itemBytes(sizes.dtype);
  const promptLogits = shape.seats * sizes.vocabSize * item;
  const stepLogits = shape.rows * sizes.vocabSize * (item + 4); // and once in float32, for types that drawing does not take
  return kvBytesOf(shape, sizes) + promptLogits + stepLogits;
}

/** Bytes of the keys and values alone. */
export function kvBytesOf({ arenaTokens, slots, ownSlots }: SlotShape, sizes: ModelSizes): number {
  return (arenaTokens + slots * ownSlots) * tokenBytes(sizes);
}

/** Keys and values of one token in all layers. */
function tokenBytes({ layers, kvHeads, headDim, dtype }: ModelSizes): number {
  return 2 * layers * kvHeads * headDim * itemBytes(dtype);
}

function itemBytes(dtype: DType): number {
  if (dtype === "float64") return 8;
  return dtype === "float32" ? 4 : 2;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}
