import { expect, test } from "vitest";
import { configSchema } from "../../src/config/schema.ts";
import { Ranks } from "../../src/distributed/ranks.ts";
import { CheckpointError } from "../../src/errors.ts";
import type { Parameter } from "../../src/model/parameter.ts";
import { normal } from "../../src/random.ts";
import { cast, clone, copy_, full, slice, sub } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { type DType, fromArray } from "../../src/torch/tensor.ts";
import { bucketLayout, bytesPerParameter, flatLayout, stagingBytes } from "../../src/trainer/flat-layout.ts";
import { createMoments, type MomentKind, StagedMoments } from "../../src/trainer/moments.ts";
import { AdamW } from "../../src/trainer/optimizer.ts";

const defaults = configSchema.parse({ model: { path: "unused" } }).optimizer;
const SHAPES: Record<string, number[]> = { matrix: [5, 7], bias: [7], other: [3, 2, 2] };

function parameters(dtype: DType): Parameter[] {
  return Object.entries(SHAPES).map(([name, shape], k) => {
    const count = shape.reduce((a, b) => a * b, 1);
    const values = Array.from({ length: count }, (_, i) => normal("weights", k, i));
    return { name, tensor: fromArray(values, shape, { dtype }), parts: [] };
  });
}

const gradientAt = (step: number, k: number, i: number) => normal("gradient", step, k, i) * (k + 1);

/** Writes the gradients of a step as a backward pass would: into the tensors that .grad views. */
function setGradients(all: readonly Parameter[], step: number): void {
  scope(() => {
    for (const [k, { tensor }] of all.entries()) {
      const values = Array.from({ length: tensor.numel }, (_, i) => gradientAt(step, k, i));
      copy_(tensor.grad!, fromArray(values, tensor.shape, { dtype: tensor.dtype }));
    }
  });
}

/** AdamW by the book on plain numbers, arXiv:1711.05101 algorithm 2, with clipping by the global norm. */
class PlainAdamW {
  readonly m: number[][];
  readonly v: number[][];
  updates = 0;
  constructor(
    readonly weights: number[][],
    readonly config: typeof defaults,
  ) {
    this.m = weights.map((values) => values.map(() => 0));
    this.v = weights.map((values) => values.map(() => 0));
  }
  step(rate: number, gradients: number[][], decays: boolean[]): number {
    const { beta1, beta2, eps, weightDecay, maxGradNorm } = this.config;
    this.updates++;
    const norm = Math.sqrt(gradients.flat().reduce((sum, g) => sum + g * g, 0));
    const scale = Math.min(1, maxGradNorm / (norm + 1e-6));
    for (const [k, values] of this.weights.entries()) {
      for (const i of values.keys()) {
        const g = gradients[k]![i]! * scale;
        const m = beta1 * this.m[k]![i]! + (1 - beta1) * g;
        const v = beta2 * this.v[k]![i]! + (1 - beta2) * g * g;
        this.m[k]![i] = m;
        this.v[k]![i] = v;
        const decayed = values[i]! * (1 - rate * (decays[k] ? weightDecay : 0));
        const unbiased = m / (1 - beta1 ** this.updates);
        values[i] = decayed - (rate * unbiased) / (Math.sqrt(v / (1 - beta2 ** this.updates)) + eps);
      }
    }
    return norm;
  }
}

const DECAYS = [true, false, true];
const numbersOf = (all: readonly Parameter[]) => all.map(({ tensor }) => tensor.toNumbers());

test.each([
  ["clipped", { maxGradNorm: 1, weightDecay: 0.1 }],
  ["not clipped", { maxGradNorm: 1e6, weightDecay: 0 }],
])("float32: equals a plain AdamW, %s", (_, more) => {
  const config = { ...defaults, ...more };
  const all = parameters("float32");
  const plain = new PlainAdamW(numbersOf(all), config);
  const optimizer = new AdamW(all, config);
  for (let step = 0; step < 5; step++) {
    optimizer.zeroGrad();
    setGradients(all, step);
    const gradients = scope(() => all.map(({ tensor }) => tensor.grad!.toNumbers()));
    using norm = optimizer.gradNorm();
    optimizer.step(0.01, norm);
    expect(norm.item()).toBeCloseTo(plain.step(0.01, gradients, DECAYS), 4);
  }
  for (const [k, values] of numbersOf(all).entries()) {
    for (const [i, value] of values.entries()) expect(value).toBeCloseTo(plain.weights[k]![i]!, 5);
  }
  optimizer[Symbol.dispose]();
  for (const { tensor } of all) tensor.free();
});

test("bfloat16 weights with their low bits are a float32 master: small updates add up", () => {
  const half = parameters("bfloat16");
  const full = half.map((parameter) => ({ ...parameter, tensor: cast(parameter.tensor, "float32") }));
  const fast = new AdamW(half, defaults);
  const exact = new AdamW(full, defaults);
  for (let step = 0; step < 30; step++) {
    setGradients(half, step);
    scope(() => full.forEach(({ tensor }, k) => void copy_(tensor.grad!, half[k]!.tensor.grad!)));
    using a = fast.gradNorm();
    using b = exact.gradNorm();
    fast.step(1e-6, a); // far below the spacing of bfloat16 numbers around 1, which is 4e-3
    exact.step(1e-6, b);
  }
  for (const [k, { tensor }] of half.entries()) {
    // The bfloat16 weight is the float32 one, rounded (to nearest; ties may differ).
    const rounded = scope(() => cast(full[k]!.tensor, "bfloat16").toNumbers());
    for (const [i, value] of tensor.toNumbers().entries()) expect(value).toBeCloseTo(rounded[i]!, 6);
    const low = fast.state().find(({ name }) => name === `${half[k]!.name}.low`)!.tensor;
    expect(low.toNumbers().some((bits) => bits !== 0)).toBe(true);
  }
  for (const optimizer of [fast, exact]) optimizer[Symbol.dispose]();
  for (const { tensor } of [...half, ...full]) tensor.free();
});

test("gradients are views of one buffer: cleared together, added to in place", () => {
  const all = parameters("float32");
  const optimizer = new AdamW(all, defaults);
  setGradients(all, 1);
  using before = optimizer.gradNorm();
  expect(before.item()).toBeGreaterThan(1);
  optimizer.zeroGrad();
  using after = optimizer.gradNorm();
  expect(after.item()).toBe(0);
  optimizer[Symbol.dispose]();
  for (const { tensor } of all) tensor.free();
});

/** A rank of a job whose other ranks are not there: what it does by itself. */
const lone = (rank: number, world: number) =>
  Object.assign(Object.create(Ranks.prototype), { rank, world, group: null });

test.each(
  (["float32", "bfloat16", "int8"] as const).flatMap((moments) => [
    ["float32", moments] as const,
    ["bfloat16", moments] as const,
  ]),
)("each rank updates its part, inside parameters too, to the bits of one that updates all: %s weights, %s moments", (dtype, moments) => {
  const big = (): Parameter[] =>
    Object.entries({
      "model.embed_tokens.0": [3, 700],
      "model.layers.0.1": [40],
      "model.layers.0.2": [5, 5, 31],
      "model.layers.10.3": [1500],
      "model.norm.4": [7], // one rank has it, the others nothing but padding
    }).map(([name, shape], k) => {
      const count = shape.reduce((a, b) => a * b, 1);
      const values = Array.from({ length: count }, (_, i) => normal("weights", k, i));
      return { name, tensor: fromArray(values, shape, { dtype }), parts: [] };
    });
  const config = { ...defaults, moments, weightDecay: 0.1 };
  const run = (optimizer: AdamW, all: readonly Parameter[]) => {
    for (let step = 0; step < 3; step++) {
      setGradients(all, step);
      using norm = fromArray([7], [1]);
      optimizer.step(1e-2, norm);
    }
  };
  const whole = big();
  const before = numbersOf(whole);
  const all = new AdamW(whole, config, 5);
  run(all, whole);
  const expected = numbersOf(whole);
  const WORLD = 4;
  const touched = whole.map(({ tensor }) => new Array<boolean>(tensor.numel).fill(false));
  for (let rank = 0; rank < WORLD; rank++) {
    const copies = big();
    const part = new AdamW(copies, config, 5, lone(rank, WORLD));
    run(part, copies);
    const numbers = numbersOf(copies);
    for (const { name, tensor, begin, end, isWhole } of part.state()) {
      const k = Number(name.split(".").at(-2));
      const saved = all
        .state()
        .find((entry) => entry.name === name)
        ?.tensor.toNumbers() as number[];
      expect(tensor.toNumbers()).toEqual(isWhole ? saved : saved.slice(begin, end));
      if (name.endsWith(".m")) touched[k]?.fill(true, begin, end);
      if (!name.endsWith(".m")) continue;
      // Its part is updated, the rest waits for the other ranks.
      expect(numbers[k]?.slice(begin, end)).toEqual(expected[k]?.slice(begin, end));
      expect(numbers[k]?.slice(end)).toEqual(before[k]?.slice(end));
      expect(numbers[k]?.slice(0, begin)).toEqual(before[k]?.slice(0, begin));
    }
    part[Symbol.dispose]();
    for (const { tensor } of copies) tensor.free();
  }
  expect(touched.flat().every(Boolean)).toBe(true);
  all[Symbol.dispose]();
  for (const { tensor } of whole) tensor.free();
});

const KINDS: MomentKind[] = ["float32", "bfloat16", "int8"];

test.each(
  KINDS,
)("%s moments: a restored state goes on bit for bit; a state that does not fit is refused", (moments) => {
  const config = { ...defaults, moments };
  const straight = parameters("bfloat16");
  const first = new AdamW(straight, config, 5);
  const run = (optimizer: AdamW, all: readonly Parameter[], from: number, to: number) => {
    for (let step = from; step < to; step++) {
      setGradients(all, step);
      using norm = optimizer.gradNorm();
      optimizer.step(1e-3, norm);
    }
  };
  run(first, straight, 0, 3);
  const copies = straight.map((parameter) => ({ ...parameter, tensor: clone(parameter.tensor) }));
  const saved = new Map(first.state().map(({ name, tensor }) => [name, clone(tensor)]));
  const second = new AdamW(copies, config, 5);
  second.restore(3, ({ name }) => saved.get(name), "file");
  run(first, straight, 3, 6);
  run(second, copies, 3, 6);
  expect(second.updates).toBe(6);
  expect(numbersOf(copies)).toEqual(numbersOf(straight));
  expect(second.state().map(({ tensor }) => tensor.toNumbers())).toEqual(
    first.state().map(({ tensor }) => tensor.toNumbers()),
  );

  expect(() => second.restore(1, () => undefined, "file")).toThrow(/matrix\.m is missing/);
  expect(() => second.restore(1, () => saved.get("bias.m"), "file")).toThrow(CheckpointError);
  for (const other of KINDS.filter((kind) => kind !== moments)) {
    const third = new AdamW(copies, { ...defaults, moments: other });
    expect(() => third.restore(3, ({ name }) => saved.get(name), "file")).toThrow(
      `holds moments of ${moments}, and optimizer.moments is ${other}`,
    );
    expect(third.updates).toBe(0);
    third[Symbol.dispose]();
  }
  for (const optimizer of [first, second]) optimizer[Symbol.dispose]();
  for (const tensor of saved.values()) tensor.free();
  for (const { tensor } of [...straight, ...copies]) tensor.free();
});

test("what a checkpoint holds: names and types", () => {
  const shapes = Object.keys(SHAPES).length;
  const kinds = {
    float32: ["m", "v", "low"],
    bfloat16: ["m", "v", "low"],
    int8: ["m", "v", "m_scale", "v_scale", "low"],
  };
  for (const moments of KINDS) {
    const all = parameters("bfloat16");
    const optimizer = new AdamW(all, { ...defaults, moments });
    const state = optimizer.state();
    expect(state.slice(0, state.length / shapes).map(({ name }) => name)).toEqual(
      kinds[moments].map((k) => `matrix.${k}`),
    );
    const dtype = moments === "int8" ? "uint8" : moments;
    for (const { name, tensor } of state) {
      const wanted = /\.[mv]$/.test(name) ? dtype : name.endsWith("low") ? "int16" : "float32";
      expect([name, tensor.dtype]).toEqual([name, wanted]);
    }
    optimizer[Symbol.dispose]();
    for (const { tensor } of all) tensor.free();
  }
});

test("a gradient that is not finite leaves weights and state as they are, and the norm tells", () => {
  const all = parameters("float32");
  const optimizer = new AdamW(all, { ...defaults, moments: "int8" });
  setGradients(all, 0);
  using good = optimizer.gradNorm();
  optimizer.step(0.1, good);
  const before = [numbersOf(all), optimizer.state().map(({ tensor }) => tensor.toNumbers())];
  scope(() => void copy_(slice(all[1]!.tensor.grad!, 0, 3, 4), full([1], Number.NaN)));
  using bad = optimizer.gradNorm();
  expect(bad.item()).toBeNaN();
  optimizer.step(0.1, bad);
  expect([numbersOf(all), optimizer.state().map(({ tensor }) => tensor.toNumbers())]).toEqual(before);
  optimizer[Symbol.dispose]();
  for (const { tensor } of all) tensor.free();
});

test("another seed rounds otherwise, by less than the step", () => {
  const [a, b] = [1, 2].map((seed) => {
    const all = parameters("float32");
    const optimizer = new AdamW(all, { ...defaults, moments: "bfloat16" }, seed);
    for (let step = 0; step < 5; step++) {
      setGradients(all, step);
      using norm = optimizer.gradNorm();
      optimizer.step(1e-3, norm);
    }
    const weights = numbersOf(all).flat();
    optimizer[Symbol.dispose]();
    for (const { tensor } of all) tensor.free();
    return weights;
  }) as [number[], number[]];
  expect(a).not.toEqual(b);
  a.forEach((value, i) => {
    expect(Math.abs(value - b[i]!)).toBeLessThan(1e-3);
  });
});

test("what travels together: a part of the model each, cut evenly; one rank needs no cut", () => {
  const numels = {
    "visual.patch_embed.proj.weight": 300,
    "visual.blocks.0.norm1.weight": 10,
    "visual.blocks.1.norm1.weight": 10,
    "visual.merger.ln_q.weight": 10,
    "model.embed_tokens.weight": 5000,
    "model.layers.1.a": 600,
    "model.layers.1.b": 1,
    "model.layers.11.a": 600,
    "model.norm.weight": 10,
    "lm_head.weight": 5000,
  };
  const parameters = Object.entries(numels).map(([name, numel]) => ({ name, numel }));
  const { starts, size, buckets } = bucketLayout(parameters, 3);
  expect(Object.fromEntries(buckets.map(({ part, size }) => [part, size]))).toEqual({
    "visual.patch_embed": 768,
    "visual.blocks.0": 768,
    "visual.blocks.1": 768,
    "visual.merger": 768,
    "model.embed_tokens": 5376, // 7 x 768
    "model.layers.1": 1536,
    "model.layers.11": 768,
    head: 5376,
  });
  expect(buckets.map(({ begin }) => begin)).toEqual([0, 768, 1536, 2304, 3072, 8448, 9984, 10752]);
  expect(size).toBe(10752 + 5376);
  expect(starts).toEqual([0, 768, 1536, 2304, 3072, 8448, 8448 + 768, 9984, 10752, 10752 + 256]);
  const alone = bucketLayout(parameters, 1);
  expect(alone.buckets).toHaveLength(1);
  expect(alone).toMatchObject(flatLayout(Object.values(numels)));
});

test.each(KINDS)("%s moments that pass through stages of any size are those that stay", (kind) => {
  const { size } = flatLayout([300, 1000, 5]);
  for (const [stageElements, ...cuts] of [[256], [512], [1024], [2 ** 20], [512, 256, 1024], [2 ** 20, 768]] as const) {
    using staged = new StagedMoments(kind, size, "cpu", stageElements);
    using resident = createMoments(kind, size, "cpu", "cpu"); // on the CPU there is nothing to do
    expect(resident).not.toBeInstanceOf(StagedMoments);
    for (const moments of [staged, resident]) {
      for (let turn = 1; turn <= 3; turn++) {
        let covered = size; // from here on
        moments.update((range, begin) => {
          expect(begin + range.m.numel).toBe(covered);
          for (const cut of cuts) expect(begin >= cut || covered <= cut).toBe(true);
          covered = begin;
          scope(() => {
            for (const [tensor, unit] of [
              [range.m, 1],
              [range.v, 1],
              [range.mScale, 256],
              [range.vScale, 256],
            ] as const) {
              if (tensor === null) continue;
              // What it was, and the place: a range that came from or went to the wrong place shows.
              const places = Float32Array.from({ length: tensor.numel }, (_, i) => ((begin / unit + i) % 7) + turn);
              copy_(tensor, cast(sub(fromArray(places, [tensor.numel]), cast(tensor, "float32")), tensor.dtype));
            }
          });
        }, cuts);
        expect(covered).toBe(0);
      }
      moments.settle();
    }
    const all = ({ whole }: typeof staged | typeof resident) =>
      Object.values(whole).map((tensor) => tensor?.toNumbers());
    expect(all(staged)).toEqual(all(resident));
    expect(all(staged)[0]!.some((value: number) => value > 1)).toBe(true);
  }
});

test("the plan's arithmetic is what is allocated", () => {
  for (const moments of KINDS) {
    for (const dtype of ["float32", "bfloat16"] as const) {
      const all = parameters(dtype);
      const { size } = flatLayout(all.map(({ tensor }) => tensor.numel));
      const before = liveTensors().bytes;
      const optimizer = new AdamW(all, { ...defaults, moments });
      const bytes = bytesPerParameter({ device: "cpu", dtype, optimizer: { moments, offload: "cpu" } });
      expect(liveTensors().bytes - before).toBe(size * (bytes.gradients + bytes.device));
      expect(bytes.host).toBe(0);
      const away = bytesPerParameter({ device: "cuda", dtype, optimizer: { moments, offload: "cpu" } });
      expect(away.device + away.host).toBe(bytes.device);
      expect(away.host).toBe({ float32: 8, bfloat16: 4, int8: 2 + 1 / 32 }[moments]);
      optimizer[Symbol.dispose]();
      for (const { tensor } of all) tensor.free();
    }
  }
  expect(stagingBytes({ device: "cpu", optimizer: { moments: "float32", offload: "cpu" } }, 1000)).toBe(0);
  expect(stagingBytes({ device: "cuda", optimizer: { moments: "bfloat16", offload: "cpu" } }, 2048)).toBe(2048 * 4);
  expect(stagingBytes({ device: "cuda", optimizer: { moments: "int8", offload: "cpu" } }, 2 ** 33)).toBe(
    3 * 2 ** 25 * (2 + 1 / 32),
  );
});
