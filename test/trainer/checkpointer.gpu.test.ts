/** Snapshots of a CUDA device: taken beside what it computes, of the moment of the call, with the bytes of a checkpoint written in place. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect } from "vitest";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { synchronize } from "../../src/torch/cuda.ts";
import { HostMemory } from "../../src/torch/host-memory.ts";
import { add_, fill_, matmul, ones, randn, slice } from "../../src/torch/ops.ts";
import { keep, liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { tensorFile } from "../../src/trainer/checkpoint.ts";
import { Checkpointer } from "../../src/trainer/checkpointer.ts";
import { gpuTest } from "../setup/gpu.ts";
import { filesBelow } from "./files-below.ts";

const device = "cuda" as const;

function inFolder(work: (folder: string) => Promise<void>): () => Promise<void> {
  return async () => {
    const folder = mkdtempSync(path.join(tmpdir(), "checkpointer-gpu-"));
    try {
      await work(folder);
    } finally {
      rmSync(folder, { recursive: true });
    }
  };
}

const filesOf = (tensors: readonly Tensor[]) => [
  tensorFile(
    "optimizer.safetensors",
    tensors.map((tensor, i) => ({ name: `t${i}`, dtype: tensor.dtype, shape: tensor.shape, read: () => tensor })),
  ),
];

gpuTest("bytes of device tensors arrive in page-locked memory, over the ends of blocks too", () => {
  using memory = new HostMemory(10_007, { pinned: true, blockBytes: 4096 });
  scope(() => {
    const values = Float32Array.from({ length: 2500 }, (_, i) => i / 7);
    memory.copyFrom(fromArray(values, [2500], { device }), 5);
    synchronize();
    expect(Buffer.concat(memory.ranges(5, 10_005)).equals(Buffer.from(values.buffer))).toBe(true);
  });
});

gpuTest(
  "a snapshot is of the moment of the call, behind work that is still enqueued, and survives updates after beforeUpdate()",
  inFolder(async (folder) => {
    const before = liveTensors();
    const tensors = [
      keep(ones([2 ** 24 + 3], { device })),
      keep(ones([2 ** 23 + 1], { device, dtype: "bfloat16" })),
      keep(ones([1001], { dtype: "float32" })), // of the host, as offloaded moments are
    ];
    const checkpoints = new Checkpointer(folder, { keepLast: 9 });
    for (let step = 1; step <= 3; step++) {
      scope(() => {
        const x = randn([4096, 4096], { device });
        for (let i = 0; i < 20; i++) matmul(x, x); // the fills below are still to come when the snapshot is asked for
        for (const tensor of tensors) fill_(tensor, step);
      });
      await checkpoints.save(step, filesOf(tensors));
      checkpoints.beforeUpdate();
      scope(() => tensors.map((tensor) => add_(tensor, 50)));
    }
    await checkpoints.saved();
    for (let step = 1; step <= 3; step++) {
      using file = new SafetensorsFile(path.join(folder, `checkpoint-${step}`, "optimizer.safetensors"));
      for (const name of file.names()) {
        const values = scope(() => file.tensor(name).toArray()) as Float32Array;
        expect(
          values.every((value) => value === step),
          `${name} of ${step}`,
        ).toBe(true);
      }
    }
    await checkpoints.close();
    for (const tensor of tensors) tensor.free();
    expect(liveTensors()).toEqual(before);
  }),
);

gpuTest(
  "the bytes are those of a checkpoint written in place",
  inFolder(async (folder) => {
    const tensors = scope(() => [
      keep(randn([777, 1023], { device })),
      keep(slice(randn([100_003], { device, dtype: "bfloat16" }), 0, 1, 90_000)),
    ]);
    const content = async (step: number, last: boolean) => {
      const checkpoints = new Checkpointer(folder, { keepLast: 9 });
      await checkpoints.save(step, filesOf(tensors), { last });
      await checkpoints.saved();
      await checkpoints.close();
      const checkpoint = path.join(folder, `checkpoint-${step}`);
      return filesBelow(checkpoint).map((name) => readFileSync(path.join(checkpoint, name)).toString("base64"));
    };
    expect(await content(1, false)).toEqual(await content(2, true));
    for (const tensor of tensors) tensor.free();
  }),
);
