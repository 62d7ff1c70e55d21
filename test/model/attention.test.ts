/** grove::group_attention against masked attention per group, on the CPU; test/model/group-attention.gpu.test.ts does it on CUDA. */

import { expect, test } from "vitest";
import { PackedPlan, PrefillPlan, type Segments } from "../../src/model/attention.ts";
import { backward, enableGrad } from "../../src/torch/autograd.ts";
import { cast, detach, randn, slice, zeros } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import type { DType, Tensor } from "../../src/torch/tensor.ts";
import { relativeError } from "./support.ts";

const LAYOUTS: Record<string, Segments> = {
  "odd lengths": { promptLengths: [13, 7, 1], completionLengths: [[5, 3, 1], [4], [40, 6]] },
  "a group without completions, an empty completion": { promptLengths: [9, 33], completionLengths: [[], [0, 2]] },
  "prompts only": { promptLengths: [4, 50], completionLengths: [[], []] },
};
const HEADS: [number, number, number][] = [
  [4, 2, 32],
  [3, 3, 8],
  [6, 1, 20],
];
const TOLERANCE = { float64: 1e-12, float32: 1e-5, bfloat16: 1e-2 };

function attend(inputs: Tensor[], dOut: Tensor, segments: Segments, path: "fused" | "dense", dtype: DType): number[][] {
  return scope(() => {
    using plan = new PackedPlan(segments, path);
    const leaves = inputs.map((x) => detach(cast(x, dtype)).setRequiresGrad(true)) as [Tensor, Tensor, Tensor];
    const out = enableGrad(() => plan.attend(0, ...leaves));
    backward([out], [cast(dOut, dtype)]);
    return [out, ...leaves.map((leaf) => leaf.grad as Tensor)].map((x) => x.toNumbers());
  });
}

test.each(Object.keys(LAYOUTS))("fused equals dense: %s", (name) => {
  const segments = LAYOUTS[name] as Segments;
  const rows = [...segments.promptLengths, ...segments.completionLengths.flat()].reduce((a, b) => a + b, 0);
  for (const [H, K, D] of HEADS) {
    for (const dtype of ["float64", "float32", "bfloat16"] as const) {
      scope(() => {
        using generator = new Generator(3);
        const draw = (n: number) => cast(randn([rows, n, D], { generator }), dtype);
        const inputs = [draw(H), draw(K), draw(K)];
        const dOut = draw(H);
        const fused = attend(inputs, dOut, segments, "fused", dtype);
        const dense = attend(inputs, dOut, segments, "dense", "float64");
        for (const [i, what] of ["out", "dq", "dk", "dv"].entries()) {
          expect(
            relativeError(fused[i] as number[], dense[i] as number[]),
            `${what} ${dtype} ${H}/${K}x${D}`,
          ).toBeLessThan(TOLERANCE[dtype]);
        }
      });
    }
  }
});

test("a prefill attends inside each prompt and hands every layer's keys and values to the sink", () => {
  scope(() => {
    using generator = new Generator(4);
    const [q, k, v] = [4, 2, 2].map((n) => randn([11, n, 8], { generator })) as [Tensor, Tensor, Tensor];
    const seen: [number, number[], number[]][] = [];
    using both = new PrefillPlan([5, 6], (layer, keys, values) =>
      seen.push([layer, keys.toNumbers(), values.toNumbers()]),
    );
    const together = both.attend(7, q, k, v);
    expect(seen).toEqual([[7, k.toNumbers(), v.toNumbers()]]);
    using second = new PrefillPlan([6]);
    const [q2, k2, v2] = [q, k, v].map((x) => slice(x, 0, 5, 11)) as [Tensor, Tensor, Tensor];
    expect(relativeError(slice(together, 0, 5, 11).toNumbers(), second.attend(0, q2, k2, v2).toNumbers())).toBeLessThan(
      1e-6,
    );
  });
});

test("rows that do not fit the plan are refused", () => {
  scope(() => {
    using plan = new PackedPlan({ promptLengths: [3], completionLengths: [[2]] });
    const x = randn([4, 2, 8]);
    expect(() => plan.attend(0, x, x, x)).toThrow("expected q [5, heads, headDim] for this pack, got [4, 2, 8]");
  });
});

test("heads that cannot be grouped are refused", () => {
  scope(() => {
    using plan = new PackedPlan({ promptLengths: [4], completionLengths: [[]] }, "fused");
    const x = zeros([4, 2, 8]);
    for (const heads of [0, 3]) {
      const k = zeros([4, heads, 8]);
      expect(() => plan.attend(0, x, k, k)).toThrow("heads be a multiple of kv heads");
    }
  });
});
