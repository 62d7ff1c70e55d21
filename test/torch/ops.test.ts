/** Every operator of ops.ts against values worked out by hand, and the names of all schemas against the loaded libtorch. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { schemaOf } from "../../src/torch/dispatch.ts";
import * as ops from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";

const nested = (x: Tensor): unknown => ({ shape: x.shape, values: x.toNumbers() });
const close = (x: Tensor, shape: number[], values: number[], digits = 5): void => {
  expect(x.shape).toEqual(shape);
  x.toNumbers().forEach((value, i) => {
    expect(value).toBeCloseTo(values[i]!, digits);
  });
  expect(x.numel).toBe(values.length);
};
/** [[1, 2, 3], [4, 5, 6]] float32. */
const matrix = (): Tensor => fromArray([1, 2, 3, 4, 5, 6], [2, 3]);
const ids = (...values: number[]): Tensor => fromArray(values, [values.length], { dtype: "int64" });

test("every schema named in ops.ts exists in this libtorch", () => {
  const source = readFileSync(new URL("../../src/torch/ops.ts", import.meta.url), "utf8");
  const names = [...source.matchAll(/"(aten::[\w.]+)"/g)].map((match) => match[1]!);
  expect(names.length).toBeGreaterThan(120);
  for (const name of names) expect(schemaOf(name).startsWith(name)).toBe(true);
});

test("making tensors", () => {
  scope(() => {
    expect(nested(ops.zeros([2, 2]))).toEqual({ shape: [2, 2], values: [0, 0, 0, 0] });
    expect(ops.ones([2], { dtype: "int32" }).toArray()).toEqual(Int32Array.of(1, 1));
    expect(ops.full([2], 2.5).toNumbers()).toEqual([2.5, 2.5]);
    expect(ops.full([2], 2).dtype).toBe("float32");
    expect(ops.empty([3, 0, 2]).shape).toEqual([3, 0, 2]);
    expect(ops.arange(2, 5).toArray()).toEqual(BigInt64Array.of(2n, 3n, 4n));
    expect(ops.arange(0, 1, { dtype: "float64", step: 0.25 }).toNumbers()).toEqual([0, 0.25, 0.5, 0.75]);
    const like = ops.zerosLike(matrix(), "bfloat16");
    expect([like.shape, like.dtype]).toEqual([[2, 3], "bfloat16"]);
    expect(ops.onesLike(ids(1, 2)).dtype).toBe("int64");
    expect(ops.emptyLike(matrix()).shape).toEqual([2, 3]);
  });
});

test("shape", () => {
  scope(() => {
    const x = matrix();
    expect(ops.reshape(x, [3, -1]).shape).toEqual([3, 2]);
    expect(nested(ops.transpose(x, 0, 1))).toEqual({ shape: [3, 2], values: [1, 4, 2, 5, 3, 6] });
    expect(ops.permute(ops.unsqueeze(x, 0), [2, 0, 1]).shape).toEqual([3, 1, 2]);
    expect(nested(ops.contiguous(ops.transpose(x, 0, 1)))).toEqual({ shape: [3, 2], values: [1, 4, 2, 5, 3, 6] });
    expect(nested(ops.slice(x, 1, 1, 99))).toEqual({ shape: [2, 2], values: [2, 3, 5, 6] });
    expect(ops.slice(x, 1, 0, 3, 2).toNumbers()).toEqual([1, 3, 4, 6]);
    expect(nested(ops.select(x, 0, 1))).toEqual({ shape: [3], values: [4, 5, 6] });
    expect(ops.narrow(x, 1, 1, 1).toNumbers()).toEqual([2, 5]);
    expect(ops.indexSelect(x, 1, ids(2, 0)).toNumbers()).toEqual([3, 1, 6, 4]);
    expect(ops.gather(x, 1, fromArray([2, 0], [2, 1], { dtype: "int64" })).toNumbers()).toEqual([3, 4]);
    expect(ops.cat([x, x], 0).shape).toEqual([4, 3]);
    expect(ops.stack([x, x], 1).shape).toEqual([2, 2, 3]);
    expect(ops.split(x, [1, 2], 1).map(nested)).toEqual([
      { shape: [2, 1], values: [1, 4] },
      { shape: [2, 2], values: [2, 3, 5, 6] },
    ]);
    expect(ops.expand(ops.slice(x, 0, 0, 1), [2, 3]).toNumbers()).toEqual([1, 2, 3, 1, 2, 3]);
    expect(ops.squeeze(ops.unsqueeze(x, 1), 1).shape).toEqual([2, 3]);
    expect(ops.flatten(x).shape).toEqual([6]);
    expect(ops.repeatInterleave(ids(1, 2), 2, 0).toNumbers()).toEqual([1, 1, 2, 2]);
    expect(ops.repeat(ids(1, 2), [2]).toNumbers()).toEqual([1, 2, 1, 2]);
    expect(ops.flip(ids(1, 2, 3), [0]).toNumbers()).toEqual([3, 2, 1]);
    expect(ops.asStrided(x, [2, 2], [1, 3], 1).toNumbers()).toEqual([2, 5, 3, 6]);
    expect(ops.viewDtype(fromArray([1], [1]), "int32").toNumbers()).toEqual([0x3f800000]);
  });
});

test("dtype and device", () => {
  scope(() => {
    const x = fromArray([1.5, -2.5], [2]);
    expect(ops.cast(x, "int32").toNumbers()).toEqual([1, -2]);
    expect(ops.to(x, { dtype: "float64", device: "cpu" }).dtype).toBe("float64");
    // Nothing to convert: the same memory, so a write shows in both.
    const same = ops.to(x, { device: "cpu" });
    ops.fill_(same, 7);
    expect(x.toNumbers()).toEqual([7, 7]);
    const copy = ops.clone(x);
    ops.zero_(copy);
    expect(x.toNumbers()).toEqual([7, 7]);
  });
});

test("arithmetic", () => {
  scope(() => {
    const x = fromArray([1, -4, 9], [3]);
    const y = fromArray([2, 2, 3], [3]);
    expect(ops.add(x, y).toNumbers()).toEqual([3, -2, 12]);
    expect(ops.add(x, y, 10).toNumbers()).toEqual([21, 16, 39]);
    expect(ops.add(x, 1).toNumbers()).toEqual([2, -3, 10]);
    expect(ops.sub(x, y, 2).toNumbers()).toEqual([-3, -8, 3]);
    expect(ops.sub(x, 1).toNumbers()).toEqual([0, -5, 8]);
    expect(ops.mul(x, y).toNumbers()).toEqual([2, -8, 27]);
    expect(ops.mul(x, 0.5).toNumbers()).toEqual([0.5, -2, 4.5]);
    expect(ops.div(x, y).toNumbers()).toEqual([0.5, -2, 3]);
    expect(ops.div(x, 4).toNumbers()).toEqual([0.25, -1, 2.25]);
    expect(ops.remainder(x, 3).toNumbers()).toEqual([1, 2, 0]);
    expect(ops.pow(x, 2).toNumbers()).toEqual([1, 16, 81]);
    expect(ops.pow(y, y).toNumbers()).toEqual([4, 4, 27]);
    expect(ops.neg(x).toNumbers()).toEqual([-1, 4, -9]);
    expect(ops.abs(x).toNumbers()).toEqual([1, 4, 9]);
    expect(ops.square(x).toNumbers()).toEqual([1, 16, 81]);
    expect(ops.clamp(x, -1, 5).toNumbers()).toEqual([1, -1, 5]);
    expect(ops.clamp(x, null, 5).toNumbers()).toEqual([1, -4, 5]);
    expect(ops.minimum(x, y).toNumbers()).toEqual([1, -4, 3]);
    expect(ops.maximum(x, y).toNumbers()).toEqual([2, 2, 9]);
    expect(ops.round(fromArray([0.5, 1.5, 2.4], [3])).toNumbers()).toEqual([0, 2, 2]);
    expect(ops.floor(fromArray([-0.5, 1.5], [2])).toNumbers()).toEqual([-1, 1]);
    expect(ops.reciprocal(y).toNumbers()[0]).toBe(0.5);
    // An int tensor keeps its dtype under an integer, and becomes float under a fraction.
    expect(ops.add(ids(1), 2).dtype).toBe("int64");
    expect(ops.mul(ids(1), 0.5).dtype).toBe("float32");
  });
});

describe("elementwise functions against Math", () => {
  const values = [0.3, 0.5, 1, 2.25];
  const sigmoid = (v: number): number => 1 / (1 + Math.exp(-v));
  const cases: [string, (x: Tensor) => Tensor, (v: number) => number][] = [
    ["exp", ops.exp, Math.exp],
    ["log", ops.log, Math.log],
    ["sqrt", ops.sqrt, Math.sqrt],
    ["rsqrt", ops.rsqrt, (v) => 1 / Math.sqrt(v)],
    ["cos", ops.cos, Math.cos],
    ["sin", ops.sin, Math.sin],
    ["tanh", ops.tanh, Math.tanh],
    ["sigmoid", ops.sigmoid, sigmoid],
    ["silu", ops.silu, (v) => v * sigmoid(v)],
    [
      "gelu tanh",
      (x) => ops.gelu(x, "tanh"),
      (v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
    ],
  ];
  test.each(cases)("%s", (_name, run, expected) => {
    scope(() => {
      close(run(fromArray(values, [4], { dtype: "float64" })), [4], values.map(expected), 12);
    });
  });
  test("gelu with erf", () => {
    scope(() => close(ops.gelu(fromArray([1], [1], { dtype: "float64" })), [1], [0.8413447460685429], 12));
  });
});

test("reductions", () => {
  scope(() => {
    const x = matrix();
    expect(ops.sum(x).item()).toBe(21);
    expect(nested(ops.sum(x, 1, true))).toEqual({ shape: [2, 1], values: [6, 15] });
    expect(ops.sum(x, [0, 1], false, "float64").dtype).toBe("float64");
    expect(ops.mean(x, 0).toNumbers()).toEqual([2.5, 3.5, 4.5]);
    expect(ops.amax(x).item()).toBe(6);
    expect(ops.amax(x, 1).toNumbers()).toEqual([3, 6]);
    expect(ops.amin(x, 0).toNumbers()).toEqual([1, 2, 3]);
    expect(ops.argmax(x).item()).toBe(5);
    expect(ops.argmax(x, 1).toNumbers()).toEqual([2, 2]);
    const [top, places] = ops.topk(x, 2);
    expect([top.toNumbers(), places.toNumbers(), places.dtype]).toEqual([[3, 2, 6, 5], [2, 1, 2, 1], "int64"]);
    const [sorted, order] = ops.sort(fromArray([3, 1, 3, 2], [4]), 0, true);
    expect([sorted.toNumbers(), order.toNumbers()]).toEqual([
      [3, 3, 2, 1],
      [0, 2, 3, 1],
    ]);
    expect(ops.cumsum(ids(1, 2, 3), 0).toNumbers()).toEqual([1, 3, 6]);
    const edges = fromArray([1, 3, 3, 5], [4]);
    expect(ops.searchsorted(edges, fromArray([3], [1])).toNumbers()).toEqual([1]);
    expect(ops.searchsorted(edges, fromArray([3], [1]), true).toNumbers()).toEqual([3]);
    close(ops.logsumexp(fromArray([0, 0], [2]), 0), [], [Math.log(2)]);
    close(ops.softmax(fromArray([0, Math.log(3)], [2]), 0), [2], [0.25, 0.75]);
    close(ops.logSoftmax(fromArray([0, Math.log(3)], [2]), 0, "float64"), [2], [Math.log(0.25), Math.log(0.75)], 7);
    expect(ops.norm(fromArray([3, 4], [2])).item()).toBe(5);
    expect(ops.all(fromArray([1, 0], [2], { dtype: "bool" })).item()).toBe(0);
    expect(ops.any(fromArray([1, 0], [2], { dtype: "bool" })).item()).toBe(1);
    expect(ops.any(fromArray([1, 0, 0, 0], [2, 2], { dtype: "bool" }), 1).toNumbers()).toEqual([1, 0]);
  });
});

test("comparison and choice", () => {
  scope(() => {
    const x = fromArray([1, 2, 3], [3]);
    const y = fromArray([3, 2, 1], [3]);
    expect(ops.eq(x, y).toArray()).toEqual(Uint8Array.of(0, 1, 0));
    expect(ops.ne(x, 2).toNumbers()).toEqual([1, 0, 1]);
    expect(ops.lt(x, y).toNumbers()).toEqual([1, 0, 0]);
    expect(ops.le(x, 2).toNumbers()).toEqual([1, 1, 0]);
    expect(ops.gt(x, y).toNumbers()).toEqual([0, 0, 1]);
    expect(ops.ge(x, 2).toNumbers()).toEqual([0, 1, 1]);
    const low = ops.lt(x, 3);
    const high = ops.gt(x, 1);
    expect(ops.logicalAnd(low, high).toNumbers()).toEqual([0, 1, 0]);
    expect(ops.logicalOr(low, high).toNumbers()).toEqual([1, 1, 1]);
    expect(ops.logicalNot(low).toNumbers()).toEqual([0, 0, 1]);
    expect(ops.isfinite(fromArray([1, Number.NaN, Number.POSITIVE_INFINITY], [3])).toNumbers()).toEqual([1, 0, 0]);
    expect(ops.where(low, x, y).toNumbers()).toEqual([1, 2, 1]);
    expect(ops.where(low, x, 0).toNumbers()).toEqual([1, 2, 0]);
    expect(ops.where(low, 9, y).toNumbers()).toEqual([9, 9, 1]);
    expect(() => ops.where(low, 1, 2)).toThrow("one branch must be a tensor");
    expect(ops.maskedFill(x, low, -1).toNumbers()).toEqual([-1, -1, 3]);
    expect(ops.maskedSelect(x, high).toNumbers()).toEqual([2, 3]);
    expect(nested(ops.nonzero(low))).toEqual({ shape: [2, 1], values: [0, 1] });
  });
});

test("linear algebra and layers", () => {
  scope(() => {
    const x = matrix();
    const w = fromArray([1, 0, 1, 0, 1, 0], [2, 3]);
    const wT = ops.transpose(w, 0, 1);
    expect(ops.matmul(x, wT).toNumbers()).toEqual([4, 2, 10, 5]);
    expect(ops.mm(x, wT).toNumbers()).toEqual([4, 2, 10, 5]);
    expect(ops.bmm(ops.unsqueeze(x, 0), ops.unsqueeze(wT, 0)).shape).toEqual([1, 2, 2]);
    expect(ops.addmm(ops.ones([2, 2]), x, wT).toNumbers()).toEqual([5, 3, 11, 6]);
    expect(ops.linear(x, w, fromArray([10, 20], [2])).toNumbers()).toEqual([14, 22, 20, 25]);
    expect(ops.linear(x, w).toNumbers()).toEqual([4, 2, 10, 5]);
    expect(ops.outer(ids(1, 2), ids(3, 4)).toNumbers()).toEqual([3, 4, 6, 8]);
    expect(ops.tril(ops.ones([2, 2])).toNumbers()).toEqual([1, 0, 1, 1]);
    expect(ops.triu(ops.ones([2, 2]), 1).toNumbers()).toEqual([0, 1, 0, 0]);
    expect(ops.embedding(x, ids(1, 0)).toNumbers()).toEqual([4, 5, 6, 1, 2, 3]);
    const norm = Math.sqrt((3 * 3 + 4 * 4) / 2);
    close(ops.rmsNorm(fromArray([3, 4], [1, 2]), fromArray([1, 2], [2]), 0), [1, 2], [3 / norm, 8 / norm]);
    close(ops.layerNorm(fromArray([1, 3], [1, 2]), [2], null, fromArray([0, 1], [2]), 0), [1, 2], [-1, 2]);
    expect(ops.upsampleBicubic2dAa(ops.full([1, 1, 4, 4], 3), [2, 2]).toNumbers()).toEqual([3, 3, 3, 3]);
  });
});

test("attention: uniform scores average the values; causal and masked ones see less", () => {
  scope(() => {
    const q = ops.zeros([1, 2, 2, 2]);
    const k = ops.zeros([1, 1, 2, 2]);
    const v = fromArray([0, 2, 4, 6], [1, 1, 2, 2]);
    const attend = ops.scaledDotProductAttention;
    close(attend(q, k, v, { enableGqa: true }), [1, 2, 2, 2], [2, 4, 2, 4, 2, 4, 2, 4]);
    close(attend(q, k, v, { enableGqa: true, causal: true }), [1, 2, 2, 2], [0, 2, 2, 4, 0, 2, 2, 4]);
    const mask = fromArray([0, 1, 1, 0], [2, 2], { dtype: "bool" });
    close(attend(q, k, v, { enableGqa: true, mask }), [1, 2, 2, 2], [4, 6, 0, 2, 4, 6, 0, 2]);
  });
});

test("in-place operators write into, and return, their first argument", () => {
  scope(() => {
    const x = fromArray([1, 4], [2]);
    const y = fromArray([2, 2], [2]);
    const step = (result: Tensor, values: number[]): void => {
      expect(result).toBe(x);
      expect(x.toNumbers()).toEqual(values);
    };
    step(ops.add_(x, y, 2), [5, 8]);
    step(ops.add_(x, -1), [4, 7]);
    step(ops.sub_(x, y), [2, 5]);
    step(ops.mul_(x, y), [4, 10]);
    step(ops.div_(x, 2), [2, 5]);
    step(ops.addcmul_(x, y, y, 0.5), [4, 7]);
    step(ops.addcdiv_(x, y, y, -1), [3, 6]);
    step(ops.lerp_(x, y, 0.5), [2.5, 4]);
    step(ops.copy_(x, ids(9, 16)), [9, 16]);
    step(ops.sqrt_(x), [3, 4]);
    step(ops.clamp_(x, null, 3), [3, 3]);
    step(ops.indexCopy_(x, 0, ids(1), fromArray([8], [1])), [3, 8]);
    step(ops.indexAdd_(x, 0, ids(0, 0), y, 3), [15, 8]);
    step(ops.scatter_(x, 0, ids(0), fromArray([5], [1])), [5, 8]);
    step(ops.maskedFill_(x, ops.gt(x, 6), 0), [5, 0]);
    step(ops.fill_(x, 3), [3, 3]);
    step(ops.zero_(x), [0, 0]);
    step(ops.exp_(x), [1, 1]);
  });
});

test("generators: the same seed gives the same numbers, and a state goes on where it was taken", () => {
  scope(() => {
    using first = new Generator(7);
    using second = new Generator(7);
    const draw = (generator: Generator): number[] => ops.randn([5], { generator }).toNumbers();
    const start = draw(first);
    expect(draw(second)).toEqual(start);
    const state = first.state();
    const next = draw(first);
    expect(next).not.toEqual(start);
    second.setState(state);
    expect(draw(second)).toEqual(next);
    using other = new Generator(8);
    expect(draw(other)).not.toEqual(start);
    const uniform = ops.rand([1000], { generator: other }).toNumbers();
    expect(Math.min(...uniform)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...uniform)).toBeLessThan(1);
  });
});
