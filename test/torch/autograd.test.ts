/** Gradients against finite differences in float64, accumulation into flat buffers, grad mode, and errors. */
import { describe, expect, test } from "vitest";
import { InvariantError, NativeError, ShapeError } from "../../src/errors.ts";
import { backward, enableGrad, grad, noGrad } from "../../src/torch/autograd.ts";
import * as ops from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";

/** Largest |analytic - central difference| over all elements of all inputs, of sum(weights * f(inputs)). */
function gradientError(f: (...inputs: Tensor[]) => Tensor, shapes: number[][]): number {
  return scope(() => {
    using generator = new Generator(11);
    const inputs = shapes.map((shape) => ops.randn(shape, { dtype: "float64", generator }).setRequiresGrad(true));
    const output = enableGrad(() => f(...inputs));
    const weights = ops.randn(output.shape, { dtype: "float64", generator });
    const analytic = grad([output], inputs, [weights]);
    const loss = (): number => scope(() => ops.sum(ops.mul(f(...inputs), weights)).item());
    let worst = 0;
    inputs.forEach((input, i) => {
      const flat = ops.reshape(ops.detach(input), [-1]);
      const got = analytic[i]!.toNumbers();
      for (let j = 0; j < input.numel; j++) {
        const element = ops.slice(flat, 0, j, j + 1);
        const at = element.item();
        const eps = 1e-6;
        ops.fill_(element, at + eps);
        const above = loss();
        ops.fill_(element, at - eps);
        const below = loss();
        ops.fill_(element, at);
        worst = Math.max(worst, Math.abs(got[j]! - (above - below) / (2 * eps)));
      }
    });
    return worst;
  });
}

describe("gradients against finite differences", () => {
  test.each<[string, (...inputs: Tensor[]) => Tensor, number[][]]>([
    ["mul and broadcast add", (x, y) => ops.add(ops.mul(x, x), y), [[3, 2], [2]]],
    [
      "matmul",
      (x, y) => ops.matmul(x, y),
      [
        [2, 3, 4],
        [4, 2],
      ],
    ],
    ["linear with bias", (x, w, b) => ops.linear(x, w, b), [[3, 4], [2, 4], [2]]],
    ["softmax", (x) => ops.softmax(x, -1), [[2, 5]]],
    [
      "logSoftmax and gather",
      (x) => ops.gather(ops.logSoftmax(x, -1), 1, ops.zeros([3, 1], { dtype: "int64" })),
      [[3, 4]],
    ],
    ["layerNorm", (x, w, b) => ops.layerNorm(x, [4], w, b, 1e-6), [[3, 4], [4], [4]]],
    ["rmsNorm", (x, w) => ops.rmsNorm(x, w, 1e-6), [[3, 4], [4]]],
    [
      "silu gate",
      (x, y) => ops.mul(ops.silu(x), y),
      [
        [2, 3],
        [2, 3],
      ],
    ],
    ["gelu", (x) => ops.gelu(x), [[7]]],
    ["embedding", (w) => ops.embedding(w, fromArray([1, 1, 0], [3], { dtype: "int64" })), [[3, 2]]],
    [
      "attention",
      (q, k, v) => ops.scaledDotProductAttention(q, k, v, { causal: true }),
      [
        [1, 2, 3, 4],
        [1, 2, 3, 4],
        [1, 2, 3, 4],
      ],
    ],
    ["slices and cat", (x) => ops.cat([ops.slice(x, 1, 1, 3), ops.neg(ops.slice(x, 1, 0, 1))], 1), [[2, 3]]],
    ["cumsum, exp, mean", (x) => ops.mean(ops.exp(ops.cumsum(x, 1)), 0), [[2, 3]]],
  ])("%s", (_name, f, shapes) => {
    expect(gradientError(f, shapes)).toBeLessThan(1e-7);
  });
});

describe("backward", () => {
  test("adds into a view of a flat buffer that setGrad gave, in place", () => {
    scope(() => {
      const flat = ops.zeros([6]);
      const w = fromArray([1, 2], [2]).setRequiresGrad(true);
      const v = fromArray([1, 2, 3, 4], [2, 2]).setRequiresGrad(true);
      w.setGrad(ops.slice(flat, 0, 0, 2));
      v.setGrad(ops.reshape(ops.slice(flat, 0, 2, 6), [2, 2]));
      const x = fromArray([10, 100], [2]);
      for (let pass = 1; pass <= 3; pass++) {
        const [y, z] = enableGrad(() => [ops.mul(w, x), ops.sum(v)] as const);
        backward([y, z], [ops.ones([2]), null]);
        expect(flat.toNumbers()).toEqual([10, 100, 1, 1, 1, 1].map((value) => value * pass));
      }
      expect(w.grad!.toNumbers()).toEqual([30, 300]);
    });
  });

  test("adds bfloat16 gradients into a float32 buffer without rounding the sum", () => {
    scope(() => {
      const w = ops.cast(fromArray([1], [1]), "bfloat16").setRequiresGrad(true);
      const flat = ops.zeros([1], { dtype: "float32" });
      w.setGrad(flat);
      // 256 + 1 has no bfloat16: a bfloat16 sum would stay at 256.
      for (const factor of [256, 1]) backward([enableGrad(() => ops.mul(w, factor))], [null]);
      expect(flat.toNumbers()).toEqual([257]);
    });
  });

  test("without setGrad a gradient appears, and null takes it away", () => {
    scope(() => {
      const w = ops.ones([2]).setRequiresGrad(true);
      expect(w.requiresGrad).toBe(true);
      expect(w.grad).toBeNull();
      backward([enableGrad(() => ops.sum(ops.mul(w, 5)))], [null]);
      expect(w.grad!.toNumbers()).toEqual([5, 5]);
      w.setGrad(null);
      expect(w.grad).toBeNull();
      expect(w.setRequiresGrad(false).requiresGrad).toBe(false);
    });
  });

  test("one layer at a time equals the whole graph", () => {
    scope(() => {
      using generator = new Generator(5);
      const x = ops.randn([4, 3], { dtype: "float64", generator }).setRequiresGrad(true);
      const w = ops.randn([3, 3], { dtype: "float64", generator }).setRequiresGrad(true);
      const layer = (input: Tensor): Tensor => ops.silu(ops.linear(input, w));
      const whole = grad([enableGrad(() => ops.sum(layer(layer(x))))], [x, w], [null]);
      const middle = ops.detach(enableGrad(() => layer(x))).setRequiresGrad(true);
      const out = enableGrad(() => ops.sum(layer(middle)));
      const [dMiddle, dW2] = grad([out], [middle, w], [null]);
      const first = enableGrad(() => layer(x));
      const [dX, dW1] = grad([first], [x, w], [dMiddle!]);
      expect(dX!.toArray()).toEqual(whole[0]!.toArray());
      expect(ops.add(dW2!, dW1!).toArray()).toEqual(whole[1]!.toArray());
    });
  });

  test("the graph keeps what it needs after the handles are gone, and dies with backward", () => {
    const before = liveTensors();
    const w = ops.ones([4]).setRequiresGrad(true);
    const y = enableGrad(() => scope(() => ops.sum(ops.mul(ops.mul(w, 2), w))));
    backward([y], [null]);
    scope(() => expect(w.grad!.toNumbers()).toEqual([4, 4, 4, 4]));
    expect(() => backward([y], [null])).toThrow(NativeError);
    y.free();
    w.free();
    expect(liveTensors()).toEqual(before);
  });

  test("retainGraph allows a second pass", () => {
    scope(() => {
      const w = ops.ones([1]).setRequiresGrad(true);
      const y = enableGrad(() => ops.mul(w, w));
      backward([y], [null], { retainGraph: true });
      backward([y], [null]);
      expect(w.grad!.item()).toBe(4);
    });
  });
});

describe("grad mode", () => {
  test("is off by default, and restored after nesting and exceptions", () => {
    scope(() => {
      const w = ops.ones([1]).setRequiresGrad(true);
      const records = (): boolean => ops.mul(w, 2).requiresGrad;
      expect(records()).toBe(false);
      enableGrad(() => {
        expect(records()).toBe(true);
        noGrad(() => expect(records()).toBe(false));
        expect(records()).toBe(true);
      });
      expect(() =>
        enableGrad(() => {
          throw new Error("inside");
        }),
      ).toThrow("inside");
      expect(records()).toBe(false);
      expect(() => enableGrad(async () => {})).toThrow(InvariantError);
      expect(records()).toBe(false);
    });
  });
});

describe("errors", () => {
  test("no graph, wrong gradient shape, unused input, count mismatch", () => {
    scope(() => {
      const w = ops.ones([2]).setRequiresGrad(true);
      const other = ops.ones([2]).setRequiresGrad(true);
      expect(() => backward([ops.mul(w, 2)], [null])).toThrow(NativeError);
      const y = enableGrad(() => ops.mul(w, 2));
      expect(() => backward([y], [ops.ones([3])])).toThrow(ShapeError);
      expect(() => backward([y], [null])).toThrow(NativeError);
      expect(() => grad([y], [other], [ops.ones([2])], { retainGraph: true })).toThrow(NativeError);
      const [unused, used] = grad([y], [other, w], [ops.ones([2])], { allowUnused: true });
      expect(unused).toBeNull();
      expect(used!.toNumbers()).toEqual([2, 2]);
      expect(() => backward([y], [])).toThrow(InvariantError);
      expect(() => w.setGrad(ops.ones([3]))).toThrow(ShapeError);
      expect(() => fromArray([1], [1], { dtype: "int64" }).setRequiresGrad(true)).toThrow();
    });
  });
});
