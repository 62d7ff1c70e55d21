/**
 * Attention of one new token per row by one operator, grove::decode_attention: rotation, cache write, the queries of a group against their shared
 * prompt, each completion's against its own tokens. On CUDA it is a kernel whose results equal training's bit for bit; what it computes is told in
 * native/decode_attention.cc. Letters as in decode-buffers.ts.
 */

import type { FusedAttentionPlan } from "../model/attention.ts";
import { promptChunkKeys } from "../model/prompt-chunks.ts";
import type { RopeTable } from "../model/rope.ts";
import { op } from "../torch/dispatch.ts";
import { copy_, reshape, slice, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { fromArray, type Tensor } from "../torch/tensor.ts";
import type { DecodeBuffers } from "./decode-buffers.ts";
import type { SamplerModel } from "./sampler-model.ts";

const decodeAttention = op("grove::decode_attention");
const decodeAttentionFits = op("grove::decode_attention_fits");

/** Whether the kernel takes this model: bfloat16 on an A100, H100 or the like, head sizes 64 and 128, at most 16 query heads to a key/value head. */
export function fusedDecodeFits({ config: { text }, device, dtype, headDim }: SamplerModel): boolean {
  if (device === "cpu" || dtype !== "bfloat16" || text.numHeads / text.numKvHeads > 16) return false;
  return scope(() => decodeAttentionFits(headDim).item() !== 0);
}

/** A row of the next step: what is in `slot`, completion `column` of the prompt in `seat`, which lies in the arena from `start` on. */
export interface AttentionRow {
  slot: number;
  seat: number;
  column: number;
  start: number;
  length: number;
}

/**
 * Who has which row of a step and shares which prompt, on the device: a group for each prompt with a column for each completion, or, `perRow`, a group
 * of one for each row, which reads the prompt once per completion and is there to be compared with.
 */
export class AttentionTables implements Disposable {
  readonly groups: number; // A
  /** The slot of each row, [R] int32; a row without a completion has slot S, which is always done. */
  readonly slotOfRow: Tensor;
  private readonly perRow: boolean;
  private readonly columns: number; // C
  private readonly rows: number; // R
  private readonly noSlot: number; // S
  /** [A (C + 3) + R] int32: rows [A, C] (-1: nobody), then start, length and chunk size of each group's prompt, [A] each, then slotOfRow. */
  private readonly table: Tensor;
  private used = 0;

  constructor(buffers: DecodeBuffers, options: { perRow: boolean }) {
    const { rows, slots, seats, group } = buffers.shape;
    const { device } = buffers.done;
    this.perRow = options.perRow;
    this.rows = rows;
    this.noSlot = slots;
    this.groups = options.perRow ? rows : Math.min(seats, rows);
    this.columns = options.perRow ? 1 : group;
    const before = this.groups * (this.columns + 3);
    this.table = keep(zeros([before + rows], { dtype: "int32", device }));
    this.slotOfRow = keep(slice(this.table, 0, before, before + rows));
    this.write([]);
  }

  /** Groups that somebody is in: the first ones. */
  get groupsInUse(): number {
    return this.used;
  }

  /** Replaces the tables: completion i gets row i. Steps on their way read the old ones. */
  write(completions: readonly AttentionRow[]): void {
    const { groups: A, columns: C } = this;
    const R = this.rows;
    const table = new Int32Array(A * (C + 3) + R);
    table
      .fill(-1, 0, A * C)
      .fill(1, A * (C + 2), A * (C + 3))
      .fill(this.noSlot, A * (C + 3));
    const groupOf = new Map<number, number>(); // seat ->
    for (const [row, { slot, seat, column, start, length }] of completions.entries()) {
      if (!groupOf.has(seat)) groupOf.set(seat, groupOf.size);
      const [group, at] = this.perRow ? [row, 0] : [groupOf.get(seat) as number, column];
      table[group * C + at] = row;
      table[A * (C + 3) + row] = slot;
      table[A * C + group] = start;
      table[A * (C + 1) + group] = length;
      table[A * (C + 2) + group] = promptChunkKeys(length);
    }
    this.used = this.perRow ? completions.length : groupOf.size;
    const { device } = this.table;
    scope(() => void copy_(this.table, fromArray(table, [table.length], { device })));
  }

  /** Views of the first `groups` groups; they belong to the caller's scope. */
  first(groups: number): { rows: Tensor; start: Tensor; length: Tensor; chunkKeys: Tensor } {
    const { groups: A, columns: C } = this;
    const part = (at: number, size: number) => slice(this.table, 0, at, at + size);
    return {
      rows: reshape(part(0, groups * C), [groups, C]),
      start: part(A * C, groups),
      length: part(A * (C + 1), groups),
      chunkKeys: part(A * (C + 2), groups),
    };
  }

  [Symbol.dispose](): void {
    this.table.free();
    this.slotOfRow.free();
  }
}

/** The attention of one step over the first `groups` groups, prompts of at most `chunks` chunks; made and used within one scope. */
export class FusedDecodePlan implements FusedAttentionPlan {
  private readonly buffers: DecodeBuffers;
  private readonly slots: Tensor;
  private readonly tables: ReturnType<AttentionTables["first"]>;
  private readonly chunks: number;

  constructor(buffers: DecodeBuffers, tables: AttentionTables, extent: { groups: number; chunks: number }) {
    this.buffers = buffers;
    this.slots = tables.slotOfRow;
    this.tables = tables.first(extent.groups);
    this.chunks = extent.chunks;
  }

  attendProjections(layer: number, qkv: Tensor, { cos, sin }: RopeTable): Tensor {
    const { ownK, ownV, promptK, promptV, ownLengths } = this.buffers;
    const { rows, start, length, chunkKeys } = this.tables;
    return decodeAttention(
      ...[qkv, cos, sin, ownK[layer], ownV[layer], promptK[layer], promptV[layer]],
      ...[rows, start, length, chunkKeys, ownLengths, this.chunks, qkv.size(2) ** -0.5, this.slots],
    );
  }
}
