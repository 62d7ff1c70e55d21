/** Moments on the host: the same bits as on the device, with ranges in flight on three streams. */

import { expect } from "vitest";
import { configSchema } from "../../src/config/schema.ts";
import { op } from "../../src/torch/dispatch.ts";
import { randn, zeros } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import { createMoments, type MomentKind, StagedMoments } from "../../src/trainer/moments.ts";
import { AdamW } from "../../src/trainer/optimizer.ts";
import { gpuTest } from "../setup/gpu.ts";

const defaults = configSchema.parse({ model: { path: "unused" } }).optimizer;
const KINDS: MomentKind[] = ["float32", "bfloat16", "int8"];

gpuTest.each(KINDS)("%s moments that pass through stages are those that stay", (kind) => {
  scope(() => {
    const size = 40 * 2 ** 13 + 512; // forty stages and a short one
    const run = (moments: ReturnType<typeof createMoments>) => {
      using generator = new Generator(3, "cuda");
      const weight = zeros([size], { device: "cuda" });
      const norm = fromArray([1], [1], { device: "cuda" });
      for (let t = 1; t <= 4; t++) {
        scope(() => {
          const grad = randn([size], { generator, device: "cuda" });
          moments.update(({ m, v, mScale, vScale }, begin) => {
            const rates = [1e30, 1e-3, 0.9, 0.999, 1e-8, 0, t];
            op("grove::adamw_")([weight], [0], [1, 2], [true], grad, null, m, v, mScale, vScale, norm, begin, ...rates);
          });
        });
      }
      moments.settle();
      const state = Object.values(moments.whole).map((tensor) => tensor?.toArray());
      return [weight.toArray(), ...state];
    };
    using staged = new StagedMoments(kind, size, "cuda", 2 ** 13);
    using resident = createMoments(kind, size, "cuda", "none");
    expect(run(staged)).toEqual(run(resident));
  });
});

gpuTest("optimizer.offload changes no bit of a run", () => {
  const [on, off] = (["none", "cpu"] as const).map((offload) => {
    using generator = new Generator(4, "cuda");
    const tensor = randn([1 << 16], { generator, device: "cuda", dtype: "bfloat16" });
    const optimizer = new AdamW([{ name: "w", tensor, parts: [] }], { ...defaults, offload });
    for (let step = 0; step < 3; step++) {
      scope(() => {
        op("aten::copy_")(tensor.grad!, randn([1 << 16], { generator, device: "cuda", dtype: "bfloat16" }));
        optimizer.step(1e-3, optimizer.gradNorm());
      });
    }
    const state = optimizer.state().map(({ tensor: part }) => part.toNumbers());
    const weights = tensor.toNumbers();
    optimizer[Symbol.dispose]();
    tensor.free();
    return { weights, state };
  }) as [{ weights: number[]; state: number[][] }, { weights: number[]; state: number[][] }];
  expect(off.weights).toEqual(on.weights);
  expect(off.state).toEqual(on.state);
});
