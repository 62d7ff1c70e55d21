/**
 * grove::adamw_ against torch.optim.AdamW's update written out in TypeScript, over many steps, in float64 and float32; the split
 * master against a float32 master, bit for bit; the composition of ATen ops against the fused loop.
 */
import { describe, expect, test } from "vitest";
import { DTypeError, NativeError, ShapeError } from "../../src/errors.ts";
import { op } from "../../src/torch/dispatch.ts";
import * as ops from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";

const adamw_ = op("grove::adamw_");
const adamwComposed_ = op("grove::adamw_composed_");
const BETA1 = 0.9;
const BETA2 = 0.99;
const EPS = 1e-8;
const DECAY = 0.1;

/** torch.optim.AdamW (torch/optim/adamw.py, single tensor), in float64. */
function referenceStep(p: number[], g: number[], m: number[], v: number[], lr: number, t: number): void {
  for (let i = 0; i < p.length; i++) {
    p[i] = p[i]! * (1 - lr * DECAY);
    m[i] = m[i]! + (g[i]! - m[i]!) * (1 - BETA1);
    v[i] = v[i]! * BETA2 + (1 - BETA2) * g[i]! * g[i]!;
    const denominator = Math.sqrt(v[i]!) / Math.sqrt(1 - BETA2 ** t) + EPS;
    p[i] = p[i]! - (lr / (1 - BETA1 ** t)) * (m[i]! / denominator);
  }
}

/** Bits of a bfloat16 tensor joined with its low halves, as the float32 master. */
function masterOf(param: Tensor, low: Tensor): Float32Array {
  const high = ops.viewDtype(param, "int16").toArray() as Int16Array;
  const rest = low.toArray() as Int16Array;
  return new Float32Array(Int32Array.from(high, (bits, i) => (bits << 16) + rest[i]!).buffer);
}

describe("against the formula", () => {
  test.each<[DType, number]>([
    ["float64", 1e-13],
    ["float32", 2e-6],
  ])("%s over 200 steps with a changing learning rate and gradient scale", (dtype, tolerance) => {
    scope(() => {
      using generator = new Generator(3);
      const n = 37;
      const param = ops.randn([n], { dtype, generator });
      const m = ops.zeros([n], { dtype });
      const v = ops.zeros([n], { dtype });
      const p = param.toNumbers();
      const [mean, square] = [new Array<number>(n).fill(0), new Array<number>(n).fill(0)];
      for (let t = 1; t <= 200; t++) {
        scope(() => {
          const grad = ops.randn([n], { dtype, generator });
          const scale = t % 3 === 0 ? 0.25 : 1;
          const lr = 0.01 * (1 - t / 400);
          adamw_(param, grad, null, m, v, fromArray([scale], [1]), lr, BETA1, BETA2, EPS, DECAY, t);
          referenceStep(
            p,
            grad.toNumbers().map((g) => g * scale),
            mean,
            square,
            lr,
            t,
          );
        });
      }
      param.toNumbers().forEach((value, i) => {
        expect(Math.abs(value - p[i]!)).toBeLessThan(tolerance * Math.max(1, Math.abs(p[i]!)));
      });
      m.toNumbers().forEach((value, i) => {
        expect(Math.abs(value - mean[i]!)).toBeLessThan(tolerance);
      });
    });
  });

  test("a first step without decay moves by the learning rate against the sign of the gradient", () => {
    scope(() => {
      const param = fromArray([1, 1], [2], { dtype: "float64" });
      const zero = (): Tensor => ops.zeros([2], { dtype: "float64" });
      const grad = fromArray([5, -0.001], [2], { dtype: "float64" });
      adamw_(param, grad, null, zero(), zero(), ops.ones([1]), 0.1, BETA1, BETA2, 0, 0, 1);
      expect(param.toNumbers()[0]).toBeCloseTo(0.9, 12);
      expect(param.toNumbers()[1]).toBeCloseTo(1.1, 12);
    });
  });
});

describe("split master", () => {
  test.each<[string, typeof adamw_, DType, number]>([
    ["fused, float32 gradients", adamw_, "float32", 1e-2],
    ["fused, bfloat16 gradients, tiny steps", adamw_, "bfloat16", 1e-6],
    ["composed, float32 gradients", adamwComposed_, "float32", 1e-2],
  ])("%s: equals a float32 master exactly over 100 steps", (_name, step, gradDtype, lr) => {
    scope(() => {
      using generator = new Generator(9);
      const n = 4099; // odd, and more than one vector
      const start = ops.cast(ops.randn([n], { generator }), "bfloat16");
      const whole = ops.cast(start, "float32");
      const param = ops.clone(start);
      const low = ops.zeros([n], { dtype: "int16" });
      const state = (): [Tensor, Tensor] => [ops.zeros([n]), ops.zeros([n])];
      const [m1, v1] = state();
      const [m2, v2] = state();
      const scale = fromArray([0.5], [1]);
      for (let t = 1; t <= 100; t++) {
        scope(() => {
          const grad = ops.cast(ops.randn([n], { generator }), gradDtype);
          step(whole, grad, null, m1, v1, scale, lr, BETA1, BETA2, EPS, DECAY, t);
          step(param, grad, low, m2, v2, scale, lr, BETA1, BETA2, EPS, DECAY, t);
        });
      }
      expect(masterOf(param, low)).toEqual(whole.toArray());
      expect(m2.toArray()).toEqual(m1.toArray());
      expect(v2.toArray()).toEqual(v1.toArray());
      // The weights in use are the master rounded to nearest; float32 -> bfloat16 differs from it at ties only.
      const master = whole.toNumbers();
      const live = param.toNumbers();
      const rounded = ops.cast(whole, "bfloat16").toNumbers();
      live.forEach((value, i) => {
        expect(Math.abs(value - master[i]!)).toBeLessThanOrEqual(Math.abs(rounded[i]! - master[i]!));
      });
      // A plain bfloat16 update of this size would be lost: most masters have moved away from any bfloat16.
      const moved = (low.toArray() as Int16Array).filter((bits) => bits !== 0).length;
      expect(moved).toBeGreaterThan(n / 2);
    });
  });

  test("keeps hard values exactly: ties, zeros, subnormals, the largest floats, infinity, NaN", () => {
    scope(() => {
      const bits = Uint32Array.of(
        0x3f808000,
        0x3f818000,
        0xbf808000,
        0,
        0x80000000,
        1,
        0x00008000,
        0x7f7fffff,
        0x7f800000,
        0xff800000,
        0x7fffffff,
      );
      const masters = new Float32Array(bits.buffer);
      const n = masters.length;
      // Join by hand, then let a step that changes nothing (lr 0) take the master apart again.
      const high = Int16Array.from(bits, (word) => word >> 16);
      const rest = Int16Array.from(bits, (word) => word & 0xffff);
      for (let i = 0; i < n; i++) high[i] = (bits[i]! - rest[i]!) >> 16;
      for (const step of [adamw_, adamwComposed_]) {
        const param = ops.viewDtype(fromArray(high, [n]), "bfloat16");
        const low = fromArray(rest, [n]);
        expect([...masterOf(param, low)]).toEqual([...masters]);
        step(param, ops.zeros([n]), low, ops.zeros([n]), ops.zeros([n]), ops.ones([1]), 0, BETA1, BETA2, 1, 0, 1);
        expect([...masterOf(param, low)]).toEqual([...masters]);
        const live = param.toNumbers();
        expect(live[n - 1]).toBeNaN();
        expect(live.slice(0, 2)).toEqual([1 + 2 ** -7, 1 + 2 ** -6]); // ties go away from zero
        expect(live[8]).toBe(Number.POSITIVE_INFINITY);
      }
    });
  });
});

test.each<[DType, DType]>([
  ["float32", "float32"],
  ["float32", "bfloat16"],
  ["float64", "float64"],
])("the composition equals the fused loop: %s with %s gradients", (dtype, gradDtype) => {
  scope(() => {
    using generator = new Generator(4);
    const n = 1000;
    const state: DType = dtype === "float64" ? "float64" : "float32";
    const start = ops.randn([n], { dtype, generator });
    const runs = [adamw_, adamwComposed_].map((step) => {
      using draws = new Generator(8);
      const [param, m, v] = [ops.clone(start), ops.zeros([n], { dtype: state }), ops.zeros([n], { dtype: state })];
      for (let t = 1; t <= 20; t++) {
        const grad = ops.cast(ops.randn([n], { dtype, generator: draws }), gradDtype);
        step(param, grad, null, m, v, fromArray([2], [1]), 1e-2, BETA1, BETA2, EPS, DECAY, t);
      }
      return param.toNumbers();
    });
    runs[0]!.forEach((value, i) => {
      expect(Math.abs(value - runs[1]![i]!)).toBeLessThan(1e-6);
    });
  });
});

test("arguments that do not fit are refused before anything is written", () => {
  scope(() => {
    const f32 = (n: number): Tensor => ops.ones([n]);
    const run = (
      param: Tensor,
      grad: Tensor,
      low: Tensor | null,
      m: Tensor,
      v: Tensor,
      scale = ops.ones([1]),
      t = 1,
    ): Tensor => adamw_(param, grad, low, m, v, scale, 0.1, BETA1, BETA2, EPS, DECAY, t);
    const bf16 = ops.cast(f32(4), "bfloat16");
    expect(() => run(f32(4), f32(5), null, f32(4), f32(4))).toThrow(ShapeError);
    expect(() => run(bf16, bf16, null, f32(4), f32(4))).toThrow("needs low (int16)");
    expect(() => run(f32(4), f32(4), ops.zeros([4], { dtype: "int16" }), f32(4), f32(4))).toThrow("must come without");
    expect(() => run(f32(4), f32(4), null, ops.cast(f32(4), "float64"), f32(4))).toThrow(DTypeError);
    expect(() => run(f32(4), f32(4), null, f32(4), f32(4), ops.ones([2]))).toThrow(DTypeError);
    expect(() => run(f32(4), f32(4), null, f32(4), f32(4), ops.ones([1]), 0)).toThrow("a step of at least 1");
    const strided = ops.slice(f32(8), 0, 0, 8, 2);
    expect(() => run(strided, f32(4), null, f32(4), f32(4))).toThrow(NativeError);
    expect(strided.toNumbers()).toEqual([1, 1, 1, 1]);
  });
});
