/** What throws inside a pass leaves no tensor behind. */

import { expect, test } from "vitest";
import { ChunkedLogprobs } from "../../src/model/lm-head.ts";
import { packGroups } from "../../src/model/packed.ts";
import { Tape } from "../../src/model/tape.ts";
import { KvCache } from "../../src/rollout/kv-cache.ts";
import { mul, ones } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { randomGroup, shakenModel, tinyConfig } from "./support.ts";

const fail = (): never => {
  throw new Error("out of memory");
};

/** Runs what must throw, within a scope. */
function expectNothingLeft(run: () => void, message: string): void {
  const live = liveTensors();
  expect(() => scope(run)).toThrow(message);
  expect(liveTensors()).toEqual(live);
}

test.each(["step", "stepAgain"] as const)("a %s that throws in the forward", (kind) => {
  expectNothingLeft(() => {
    using tape = new Tape();
    const y = tape[kind](ones([4]), (x) => mul(x as Tensor, 2), "first");
    tape[kind](y, fail, "second");
  }, "out of memory");
});

test("a step that throws in the backward, where it is computed again", () => {
  expectNothingLeft(() => {
    using tape = new Tape();
    const weight = ones([4]).setRequiresGrad(true);
    const times = (x: Tensor | null) => mul(x as Tensor, weight);
    let calls = 0;
    let y = tape.step(ones([4]), times, "first");
    y = tape.stepAgain(y, (x) => (calls++ === 0 ? times(x) : fail()), "second");
    tape.step(y, times, "third");
    tape.backward(ones([4]));
  }, "out of memory");
});

test("a head whose targets are not there, by itself and behind a pass", () => {
  expectNothingLeft(() => {
    const targets = fromArray([0, 1, 9], [3], { dtype: "int64" });
    new ChunkedLogprobs(ones([3, 4]), ones([5, 4]), targets, { backward: true, chunkRows: 2 });
  }, "index 9 is out of bounds");
  const config = tinyConfig();
  const model = shakenModel(config, 5);
  const pack = packGroups([randomGroup(config, 1, { videos: [[2, 4, 4]], completions: [3, 2] })]);
  pack.targets[4] = 99;
  for (const recompute of ["none", "layer"] as const) {
    expectNothingLeft(() => model.pass(pack, { grad: true, recompute }), "index 99 is out of bounds");
  }
  model[Symbol.dispose]();
});

test("a key-value cache for which there is no memory", () => {
  const shape = { layers: 2, questions: 1, group: 1, kvHeads: 1, headDim: 16, promptSlots: 3, ownSlots: 2 ** 45 };
  expectNothingLeft(() => new KvCache(shape, [3], { device: "cpu", dtype: "float32" }), "aten::zeros");
});
