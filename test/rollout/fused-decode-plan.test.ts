/** Who the attention operator is told to attend with whom, and how it takes it. */

import { afterAll, describe, expect, test } from "vitest";
import { promptChunkKeys } from "../../src/model/prompt-chunks.ts";
import { DecodeBuffers } from "../../src/rollout/decode-buffers.ts";
import { type AttentionRow, AttentionTables, fusedDecodeFits } from "../../src/rollout/fused-decode-plan.ts";
import { op } from "../../src/torch/dispatch.ts";
import { randn, zeros } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { tinyModel } from "./support.ts";

const model = tinyModel();
afterAll(() => model[Symbol.dispose]());

const shape = { rows: 4, slots: 9, ownSlots: 6, group: 2, seats: 3, arenaTokens: 2000 };
const completions: AttentionRow[] = [
  { slot: 2, seat: 1, column: 0, start: 900, length: 1000 },
  { slot: 8, seat: 0, column: 1, start: 0, length: 900 },
  { slot: 1, seat: 1, column: 1, start: 900, length: 1000 },
];

/** The tables of `groups` groups as plain numbers. */
function tablesOf(perRow: boolean, groups: number) {
  using buffers = new DecodeBuffers(shape, model);
  using tables = new AttentionTables(buffers, { perRow });
  tables.write(completions);
  return scope(() => {
    const views = tables.first(groups);
    for (const view of Object.values(views)) expect(view.dtype).toBe("int32");
    const { rows: table, start, length, chunkKeys } = views;
    return {
      groupsInUse: tables.groupsInUse,
      slotOfRow: tables.slotOfRow.toNumbers(),
      rows: table.toNumbers(),
      start: start.toNumbers(),
      length: length.toNumbers(),
      chunkKeys: chunkKeys.toNumbers(),
    };
  });
}

describe("attention tables", () => {
  test("a group for each prompt, a column for each completion, gaps where nobody is", () => {
    const before = liveTensors();
    expect(tablesOf(false, 2)).toEqual({
      slotOfRow: [2, 8, 1, 9], // the last row is nobody's
      groupsInUse: 2,
      rows: [0, 2, -1, 1],
      start: [900, 0],
      length: [1000, 900],
      chunkKeys: [promptChunkKeys(1000), promptChunkKeys(900)],
    });
    expect(tablesOf(false, 3)).toMatchObject({ rows: [0, 2, -1, 1, -1, -1], length: [1000, 900, 0] });
    expect(liveTensors()).toEqual(before);
  });

  test("a group for each row where every completion reads its prompt for itself", () => {
    expect(tablesOf(true, 4)).toMatchObject({ groupsInUse: 3, rows: [0, 1, 2, -1], start: [900, 0, 900, 0] });
  });
});

test("the kernel is for bfloat16 on CUDA", () => {
  expect(fusedDecodeFits(model)).toBe(false);
});

test("arguments that do not fit are refused with their shapes", () => {
  scope(() => {
    const decodeAttention = op("grove::decode_attention");
    const int = (...size: number[]) => zeros(size, { dtype: "int32" });
    const qkv = randn([2, 8, 4]);
    const own = zeros([2, 3, 2, 4]);
    const call = (ownLengths: number, chunks: number) =>
      decodeAttention(
        ...[qkv, randn([2, 1, 4]), randn([2, 1, 4]), own, own, zeros([5, 2, 4]), zeros([5, 2, 4])],
        ...[int(1, 2), int(1), int(1), int(1), int(ownLengths), chunks, 0.5],
      );
    expect(call(2, 1).shape).toEqual([2, 4, 4]);
    expect(() => call(3, 1)).toThrow(/own_length \[2\].*got.*\[3\]/);
    expect(() => call(2, 0)).toThrow(/chunks must/);
  });
});
