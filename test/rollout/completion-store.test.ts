/** Completions that have left their slots. */

import { afterAll, expect, test } from "vitest";
import { CompletionStore } from "../../src/rollout/completion-store.ts";
import { DecodeBuffers } from "../../src/rollout/decode-buffers.ts";
import { copy_ } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import { tinyModel } from "./support.ts";

const model = tinyModel();
afterAll(() => model[Symbol.dispose]());

const shape = { rows: 2, slots: 2, ownSlots: 3, group: 1, seats: 2, arenaTokens: 4 };

test("a completion is what its slot held when it was collected", () => {
  const before = liveTensors();
  {
    using buffers = new DecodeBuffers(shape, model);
    using store = new CompletionStore(buffers, 3);
    const put = (ids: number[], lengths: number[]) =>
      scope(() => {
        copy_(buffers.ids, fromArray(Int32Array.from(ids), [3, 3]));
        copy_(buffers.ownLength, fromArray(Int32Array.from(lengths), [3]));
      });
    put([1, 2, 3, 4, 5, 6, 0, 0, 0], [2, 0, 0]);
    store.collect([
      { slot: 1, index: 0 },
      { slot: 0, index: 2 },
    ]);
    put([7, 8, 9, 7, 8, 9, 0, 0, 0], [1, 1, 0]); // the next ones
    store.collect([{ slot: 1, index: 1 }]);
    const read = store.read();
    expect(read.map(({ ids }) => Array.from(ids))).toEqual([[4], [7, 8], [1, 2, 3]]);
    for (const { ids, logprobs, sampledLogprobs, entropies } of read)
      for (const values of [logprobs, sampledLogprobs, entropies]) expect(values).toHaveLength(ids.length);
  }
  expect(liveTensors()).toEqual(before);
});

test("memory that ends half-way leaves nothing behind", () => {
  using buffers = new DecodeBuffers(shape, model);
  const before = liveTensors();
  const endless = { done: buffers.done, shape: { ...shape, ownSlots: 2 ** 48 } } as unknown as DecodeBuffers;
  expect(() => new CompletionStore(endless, 3)).toThrow(/memory|allocate/i);
  expect(liveTensors()).toEqual(before);
});
