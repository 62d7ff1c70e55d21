/**
 * grove::adamw_ against torch.optim.AdamW's update written out in TypeScript; the split master against a float32 master, bit for bit; the composition
 * of ATen ops against the fused loop; what rounding moments of few bits does on average, and what it must never do.
 */
import { describe, expect, test } from "vitest";
import { DTypeError, ShapeError } from "../../src/errors.ts";
import { philox4x32 } from "../../src/rollout/philox.ts";
import { op } from "../../src/torch/dispatch.ts";
import * as ops from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import {
  COUNTS,
  decode,
  gradients,
  KINDS,
  makeState,
  masters,
  RATES,
  type State,
  step,
  stored,
} from "./adamw-check.ts";

const FUSED = "grove::adamw_";
const COMPOSED = "grove::adamw_composed_";
const copyOf = (values: ArrayLike<number>) => Float64Array.from(values);

function expectNear(values: Float32Array, expected: Float32Array): void {
  let worst = 0;
  values.forEach((value, i) => {
    worst = Math.max(worst, Math.abs(value - expected[i]!) / Math.max(0.01, Math.abs(expected[i]!)));
  });
  expect(worst).toBeLessThan(1e-6);
}

/** Where the elements of the parameters, one behind the other, lie in the flat buffers. */
const places = ({ params, starts }: State) =>
  params.flatMap(({ numel }, i) => Array.from({ length: numel }, (_, k) => (starts[i] as number) + k));

test.each([
  "float32",
  "bfloat16",
] as const)("float32 moments: torch.optim.AdamW over 200 steps, %s weights", (weights) => {
  scope(() => {
    const state = makeState({ weights, moments: "float32" }, "cpu", COUNTS.slice(0, 5));
    const p = copyOf(masters(state));
    const [m, v] = [copyOf(p).fill(0), copyOf(p).fill(0)];
    const at = places(state);
    const decays = state.params.flatMap(({ numel }, i) => Array<boolean>(numel).fill(state.decays[i] as boolean));
    const { beta1, beta2, eps, weightDecay } = RATES;
    for (let t = 1; t <= 200; t++) {
      scope(() => {
        const grad = gradients(state, t, weights, "cpu");
        const lr = 0.01 * (1 - t / 400);
        const norm = t % 3 === 0 ? 8 : 0.5;
        step(FUSED, state, grad, t, { lr, norm, maxNorm: 2 });
        const g = grad.toNumbers();
        const scale = Math.min(1, 2 / (norm + 1e-6));
        for (let i = 0; i < p.length; i++) {
          const x = g[at[i]!]! * scale;
          p[i]! *= 1 - lr * (decays[i] ? weightDecay : 0);
          m[i]! += (x - m[i]!) * (1 - beta1);
          v[i] = v[i]! * beta2 + (1 - beta2) * x * x;
          const denominator = Math.sqrt(v[i]!) / Math.sqrt(1 - beta2 ** t) + eps;
          p[i]! -= (lr / (1 - beta1 ** t)) * (m[i]! / denominator);
        }
      });
    }
    masters(state).forEach((value, i) => {
      expect(Math.abs(value - p[i]!)).toBeLessThan(2e-6 * Math.max(1, Math.abs(p[i]!)));
    });
  });
});

test("split master: equals a float32 master exactly over 100 steps, tiny ones too", () => {
  scope(() => {
    const split = makeState({ weights: "bfloat16", moments: "float32" }, "cpu");
    const whole = makeState({ weights: "float32", moments: "float32" }, "cpu");
    whole.params = split.params.map((param) => ops.cast(param, "float32"));
    for (let t = 1; t <= 100; t++) {
      scope(() => {
        const grad = gradients(split, t, "bfloat16", "cpu");
        const rates = { lr: t < 50 ? 1e-2 : 1e-6, norm: 3, maxNorm: 1 };
        step(FUSED, split, grad, t, rates);
        step(FUSED, whole, ops.cast(grad, "float32"), t, rates);
      });
    }
    expect(masters(split)).toEqual(masters(whole));
    expect(stored(split)).toEqual(stored(whole));
    // The weights in use are the master rounded to nearest; float32 -> bfloat16 differs from it at ties only.
    const [master, live, rounded] = [
      whole.params,
      split.params,
      whole.params.map((param) => ops.cast(param, "bfloat16")),
    ].map((all) => all.flatMap((param) => param.toNumbers())) as [number[], number[], number[]];
    live.forEach((value, i) => {
      expect(Math.abs(value - master[i]!)).toBeLessThanOrEqual(Math.abs(rounded[i]! - master[i]!));
    });
  });
});

test("split master: keeps hard values exactly: ties, zeros, subnormals, the largest floats, NaN", () => {
  scope(() => {
    const bits = Uint32Array.of(
      ...[0x3f808000, 0x3f818000, 0xbf808000, 0, 0x80000000, 1, 0x00008000, 0x7f7fffff, 0x7fffffff],
    );
    const n = bits.length;
    // Join by hand, then let a step that changes nothing (lr 0) take the master apart again.
    const rest = Int16Array.from(bits, (word) => word & 0xffff);
    const high = Int16Array.from(bits, (word, i) => (word - rest[i]!) >> 16);
    for (const name of [FUSED, COMPOSED]) {
      const state = makeState({ weights: "bfloat16", moments: "float32" }, "cpu", [n]);
      state.params = [ops.viewDtype(fromArray(high, [n]), "bfloat16")];
      ops.copy_(ops.slice(state.low!, 0, 0, n), fromArray(rest, [n]));
      expect([...masters(state)]).toEqual([...new Float32Array(bits.buffer)]);
      step(name, state, ops.zeros([256], { dtype: "bfloat16" }), 1, { lr: 0, eps: 1, weightDecay: 0 });
      expect([...masters(state)]).toEqual([...new Float32Array(bits.buffer)]);
      const live = state.params[0]!.toNumbers();
      expect(live[n - 1]).toBeNaN();
      expect(live.slice(0, 2)).toEqual([1 + 2 ** -7, 1 + 2 ** -6]); // ties go away from zero
    }
  });
});

test.each(KINDS)("the composition equals the fused loop: $weights weights, $moments moments", (kind) => {
  scope(() => {
    const [fused, composed] = [makeState(kind, "cpu"), makeState(kind, "cpu")];
    for (let t = 1; t <= 6; t++) {
      scope(() => {
        const grad = gradients(fused, t, kind.weights, "cpu");
        step(FUSED, fused, grad, t, { norm: 3, maxNorm: 1 });
        step(COMPOSED, composed, grad, t, { norm: 3, maxNorm: 1 });
      });
    }
    expect(stored(composed)).toEqual(stored(fused));
    expectNear(masters(composed), masters(fused)); // libtorch's square roots on the CPU are not the nearest
  });
});

test.each(KINDS)("updated range by range the result is the same: $weights weights, $moments moments", (kind) => {
  scope(() => {
    const [whole, ranges] = [makeState(kind, "cpu"), makeState(kind, "cpu")];
    const cuts = [0, 256, 768, 1536, 40_192, whole.size];
    for (let t = 1; t <= 3; t++) {
      const grad = gradients(whole, t, kind.weights, "cpu");
      step(FUSED, whole, grad, t);
      cuts.slice(1).forEach((end, i) => {
        step(i % 2 === 0 ? FUSED : COMPOSED, ranges, grad, t, { begin: cuts[i]!, end });
      });
    }
    expect(stored(ranges)).toEqual(stored(whole));
    expectNear(masters(ranges), masters(whole));
  });
});

test.each(KINDS)("a norm that is not finite changes nothing: $weights weights, $moments moments", (kind) => {
  scope(() => {
    const state = makeState(kind, "cpu");
    step(FUSED, state, gradients(state, 1, kind.weights, "cpu"), 1);
    const before = [masters(state), stored(state)];
    for (const norm of [Number.NaN, Number.POSITIVE_INFINITY]) {
      for (const name of [FUSED, COMPOSED]) {
        step(name, state, ops.add(gradients(state, 2, kind.weights, "cpu"), Number.NaN), 2, { norm });
      }
    }
    expect([masters(state), stored(state)]).toEqual(before);
  });
});

describe("moments of few bits", () => {
  test("random bits are Philox4x32-10's for the parameter's key, the element and the step", () => {
    scope(() => {
      const state = makeState({ weights: "float32", moments: "bfloat16" }, "cpu", [256, 8]);
      const grad = ops.add(ops.zeros([512]), 1.00390625 * 10); // m = 1.00390625: half-way between two bfloat16
      step(FUSED, state, grad, 3, { beta1: 0.9 });
      const half = Math.fround(Math.fround(1 - 0.9) * 10.0390625);
      const bits = new Uint32Array(Float32Array.of(half).buffer)[0]!;
      state.m.toNumbers().forEach((value, i) => {
        const [segment, index] = i < 256 ? [0, i] : [1, i - 256];
        if (segment === 1 && index >= 8) return;
        const key = state.keys.slice(2 * segment, 2 * segment + 2) as [number, number];
        const word = philox4x32([Math.floor(index / 4), 0, 3, 0], key)[index % 4]!;
        const rounded = new Float32Array(Uint32Array.of((bits + (word & 0xffff)) & 0xffff0000).buffer)[0];
        expect(value).toBe(rounded);
      });
    });
  });

  test.each([
    "bfloat16",
    "uint8",
  ] as const)("%s: rounding is right on average, and codes mean what is documented", (moments) => {
    scope(() => {
      using generator = new Generator(2);
      const n = 4096;
      const exact = makeState({ weights: "float32", moments: "float32" }, "cpu", [n]);
      const grad = ops.mul(ops.randn([n], { generator }), ops.exp(ops.mul(ops.randn([n], { generator }), 2)));
      step(FUSED, exact, grad, 1);
      const [m, v] = stored(exact) as [number[], number[]];
      const sums = [new Float64Array(n), new Float64Array(n)];
      const repeats = 400;
      for (let t = 1; t <= repeats; t++) {
        scope(() => {
          const state = makeState({ weights: "float32", moments }, "cpu", [n]);
          step(FUSED, state, grad, t); // another step is another draw
          const [codesM, codesV, scalesM, scalesV] = stored(state) as [number[], number[], number[], number[]];
          const values =
            moments === "uint8" ? [decode(codesM, scalesM, "m"), decode(codesV, scalesV, "v")] : [codesM, codesV];
          values.forEach((all, k) => {
            all.forEach((value, i) => {
              sums[k]![i]! += value / repeats;
            });
          });
        });
      }
      // Distance of neighbouring numbers: 2^-8 of a bfloat16, 2^-3 of a code, and the smallest code's own size near 0.
      const spacing = moments === "uint8" ? 1 / 8 : 1 / 128;
      for (const [k, [values, range]] of (
        [
          [m, 2 ** -15],
          [v, 2 ** -31],
        ] as const
      ).entries()) {
        let bias = 0;
        for (let block = 0; block < n; block += 256) {
          const largest = Math.max(...values.slice(block, block + 256).map(Math.abs));
          for (let i = block; i < block + 256; i++) {
            const error = sums[k]![i]! - values[i]!;
            const smallest = (largest / 1.875) * 1.125 * 2 ** -31;
            if (moments === "uint8" && k === 1 && values[i]! <= smallest) {
              expect(sums[k]![i]! / smallest).toBeCloseTo(1, 5); // up, always
              continue;
            }
            const step = Math.abs(values[i]!) * spacing + largest * range;
            expect(Math.abs(error)).toBeLessThan(step * 0.15); // 6 standard errors of a draw between two neighbours
            bias += error / step / n;
          }
        }
        expect(Math.abs(bias)).toBeLessThan(2e-3);
      }
    });
  });

  test.each([
    "bfloat16",
    "uint8",
  ] as const)("%s: neighbours a million times as large make no huge step of a small gradient", (moments) => {
    scope(() => {
      const n = 512;
      const state = makeState({ weights: "float32", moments }, "cpu", [n]);
      let before = masters(state);
      for (let t = 1; t <= 300; t++) {
        scope(() => {
          using generator = new Generator(t);
          const scales = Float32Array.from({ length: n }, (_, i) => (i % 2 === 1 ? 0 : 10 ** -((i / 2) % 13))); // odd ones: never a gradient
          step(FUSED, state, ops.mul(ops.randn([n], { generator }), fromArray(scales, [n])), t, {
            lr: 1,
            weightDecay: 0,
            beta2: 0.999,
            eps: 1e-30,
          });
        });
        const now = masters(state);
        const moves = Array.from(now, (value, i) => Math.abs(value - before[i]!));
        // With these betas no step of AdamW with exact moments is above (1 - beta1) / sqrt(1 - beta2) / sqrt(1 - beta1^2 / beta2) = 7.3.
        expect(Math.max(...moves.filter((_, i) => i % 2 === 0))).toBeLessThan(8);
        expect(Math.max(...moves.filter((_, i) => i % 2 === 1))).toBe(0);
        before = now;
      }
      const [m, v] = stored(state) as [number[], number[]];
      expect(v.filter((value, i) => i % 2 === 0 && value === 0)).toEqual([]);
      expect(m.filter((value, i) => i % 2 === 1 && value !== 0)).toEqual([]);
    });
  });

  test("another layout draws the same numbers: a parameter alone and among others", () => {
    for (const kind of KINDS) {
      scope(() => {
        const all = makeState(kind, "cpu");
        const alone = makeState(kind, "cpu", [1000]);
        alone.params = [ops.clone(all.params[4]!)];
        Object.assign(alone, { keys: all.keys.slice(8, 10), decays: [all.decays[4]!] });
        const start = all.starts[4]!;
        for (let t = 1; t <= 3; t++) {
          const grad = gradients(all, t, kind.weights, "cpu");
          step(FUSED, all, grad, t);
          step(FUSED, alone, ops.clone(ops.slice(grad, 0, start, start + 1024)), t);
        }
        expect(alone.params[0]!.toNumbers()).toEqual(all.params[4]!.toNumbers());
        expect(alone.m.toNumbers()).toEqual(ops.slice(all.m, 0, start, start + 1024).toNumbers());
      });
    }
  });
});

test("arguments that do not fit are refused before anything is written", () => {
  scope(() => {
    const make = () => makeState({ weights: "float32", moments: "float32" }, "cpu", [4]);
    const run = (change: (state: State) => Partial<State>, grad = ops.ones([256]), t = 1) => {
      const state = make();
      step(FUSED, { ...state, ...change(state) }, grad, t);
    };
    expect(() => run(() => ({}))).not.toThrow();
    expect(() => run(() => ({}), ops.ones([512]))).not.toThrow(); // room behind the last parameter does no harm
    expect(() => run(() => ({}), ops.ones([255]))).toThrow(ShapeError);
    expect(() => run(() => ({ starts: [256] }))).toThrow(ShapeError); // begins behind the buffers
    expect(() => run(() => ({ starts: [128] }))).toThrow(ShapeError);
    expect(() => run(() => ({ keys: [1] }))).toThrow(ShapeError);
    expect(() => run(() => ({ low: ops.zeros([256], { dtype: "int16" }) }))).toThrow("must come without");
    expect(() => run(({ params }) => ({ params: [ops.cast(params[0]!, "bfloat16")] }))).toThrow(DTypeError);
    expect(() => run(() => ({ m: ops.zeros([256], { dtype: "uint8" }) }))).toThrow("need scales");
    expect(() => run(() => ({ v: ops.zeros([256], { dtype: "bfloat16" }) }))).toThrow(DTypeError);
    expect(() => run(() => ({}), ops.ones([256]), 0)).toThrow("a step of at least 1");
    const strided = ops.slice(ops.ones([8]), 0, 0, 8, 2);
    expect(() => run(() => ({ params: [strided] }))).toThrow("must be contiguous");
    expect(strided.toNumbers()).toEqual([1, 1, 1, 1]);
  });
});

test.each([
  "float32",
  "bfloat16",
] as const)("the norm of %s gradients, of odd counts and over more than one chunk", (dtype) => {
  for (const count of [0, 1, 7, 65_536, 65_537, 200_003]) {
    scope(() => {
      using generator = new Generator(count);
      const grad = ops.cast(ops.mul(ops.randn([count], { generator }), 1e15), dtype);
      const norm = op("grove::grad_norm")(grad);
      expect([norm.dtype, norm.shape]).toEqual(["float32", []]);
      const exact = Math.sqrt(grad.toNumbers().reduce((sum, x) => sum + x * x, 0));
      expect(Math.abs(norm.item() - exact)).toBeLessThanOrEqual(1e-7 * exact);
    });
  }
  scope(() => {
    expect(op("grove::grad_norm")(ops.cast(fromArray([1, Number.POSITIVE_INFINITY], [2]), dtype)).item()).toBe(
      Number.POSITIVE_INFINITY,
    );
  });
});
