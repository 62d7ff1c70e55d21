/** Files into device memory through page-locked buffers: the same bytes, converted on the device, after what was enqueued before. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect } from "vitest";
import { SafetensorsFile, writeSafetensors } from "../../src/model/safetensors.ts";
import { readWeights } from "../../src/model/weight-reader.ts";
import { cast, empty, fill_, matmul, mul_, randn, slice } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import type { DType } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";

const root = mkdtempSync(join(tmpdir(), "grove-reader-gpu-"));
afterAll(() => rmSync(root, { recursive: true }));

const SIZES = [3, 70_001, 9_000_001]; // the last takes several chunks on every thread

gpuTest.each([
  ["bfloat16", "bfloat16", undefined],
  ["float32", "bfloat16", 1_000_003],
  ["bfloat16", "float32", undefined],
] as const)("%s in the file, %s on the device", (stored, wanted: DType, stagingBytes) => {
  scope(() => {
    using generator = new Generator(1);
    const tensors = SIZES.map((size) => cast(randn([size], { generator }), stored));
    const path = join(root, "x.safetensors");
    writeSafetensors(
      path,
      tensors.map((tensor, i) => ({ name: `t${i}`, dtype: stored, shape: tensor.shape, read: () => tensor })),
    );
    using file = new SafetensorsFile(path);
    const whole = SIZES.map((size) => empty([size + 2], { dtype: wanted, device: "cuda" }));
    // a queue of work that ends by overwriting the targets: reading must wait for it
    const busy = randn([4096, 4096], { device: "cuda", dtype: "bfloat16" });
    for (let i = 0; i < 20; i++) mul_(matmul(busy, busy), 0.5);
    for (const tensor of whole) fill_(tensor, -9);
    readWeights(
      whole.map((tensor, i) => ({ file, name: `t${i}`, into: slice(tensor, 0, 1, (SIZES[i] as number) + 1) })),
      stagingBytes === undefined ? {} : { stagingBytes },
    );
    whole.forEach((tensor, i) => {
      const found = cast(tensor, "float32").toArray();
      expect([found[0], found.at(-1)]).toEqual([-9, -9]);
      const expected = cast(cast(tensors[i] ?? tensor, wanted), "float32").toArray();
      expect(Buffer.from(found.buffer, 4, found.byteLength - 8).equals(Buffer.from(expected.buffer))).toBe(true);
    });
  });
});
