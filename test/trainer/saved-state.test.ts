import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, expect, test } from "vitest";
import { writeSafetensors } from "../../src/model/safetensors.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import { SavedState, savedName, stateFile } from "../../src/trainer/saved-state.ts";

const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

/** The entry `w.m` of 12 elements, [3, 4], of which a rank has [begin, end). */
const entry = (begin: number, end: number) => {
  const isWhole = begin === 0 && end === 12;
  const values = Array.from({ length: end - begin }, (_, i) => begin + i);
  return { name: "w.m", begin, end, isWhole, tensor: fromArray(values, isWhole ? [3, 4] : [end - begin]) };
};

/** A checkpoint's folder, written by ranks that have these ranges. */
function saved(...ranges: [begin: number, end: number][]): string {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-state-"));
  folders.push(folder);
  for (const [rank, [begin, end]] of ranges.entries()) {
    scope(() => {
      const one = entry(begin, end);
      const { dtype, shape } = one.tensor;
      const tensors = [{ name: savedName(one), dtype, shape, read: () => one.tensor }];
      writeSafetensors(path.join(folder, stateFile({ rank, world: ranges.length })), tensors);
    });
  }
  return folder;
}

test.each([
  ["one rank", saved([0, 12])],
  ["two", saved([0, 5], [5, 12])],
  ["four", saved([0, 3], [3, 6], [6, 9], [9, 12])],
])("what %s saved is read by any number of ranks", (_name, folder) => {
  using state = new SavedState(folder);
  for (const [begin, end] of [
    [0, 12],
    [0, 5],
    [5, 12],
    [2, 4],
    [4, 8],
    [11, 12],
  ] as const) {
    scope(() => {
      const wanted = entry(begin, end);
      const found = state.read(wanted);
      expect(found?.toNumbers()).toEqual(wanted.tensor.toNumbers());
      expect(found?.shape).toEqual(wanted.tensor.shape);
    });
  }
});

test("what is missing is not made up", () => {
  using state = new SavedState(saved([0, 5], [7, 12]));
  scope(() => {
    expect(state.read(entry(0, 12))).toBeUndefined();
    expect(state.read(entry(4, 6))).toBeUndefined();
    expect(state.read({ ...entry(0, 4), name: "other.m" })).toBeUndefined();
    expect(state.read(entry(8, 10))?.toNumbers()).toEqual([8, 9]);
  });
});
