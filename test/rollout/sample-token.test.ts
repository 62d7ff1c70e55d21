import fc from "fast-check";
import { expect, test } from "vitest";
import { ConfigError } from "../../src/errors.ts";
import { normal, uniform } from "../../src/random.ts";
import { filterLogits, type SamplingOptions, TokenSampler } from "../../src/rollout/sample-token.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";

const plain: SamplingOptions = { temperature: 1, topK: 0, topP: 1 };

/** Draws one token per uniform number, all from the same logits. */
function drawMany(logits: number[], uniforms: number[], options: SamplingOptions, forbidden: number[] = []) {
  return scope(() => {
    using sampler = new TokenSampler(logits.length, forbidden, options, "cpu");
    const rows = fromArray(
      uniforms.flatMap(() => logits),
      [uniforms.length, logits.length],
    );
    const draw = sampler.draw(rows, fromArray(uniforms, [uniforms.length]));
    return {
      ids: draw.ids.toNumbers(),
      sampledLogprobs: draw.sampledLogprobs.toNumbers(),
      logprobs: draw.logprobs.toNumbers(),
    };
  });
}

/** The sampled distribution by the definitions of temperature, top-k and top-p, in float64. */
function reference(logits: number[], { temperature, topK, topP }: SamplingOptions, forbidden: number[] = []): number[] {
  let z = logits.map((x, i) => (forbidden.includes(i) ? Number.NEGATIVE_INFINITY : x / temperature));
  const normalise = (values: number[]) => {
    const weights = values.map((x) => Math.exp(x - Math.max(...values)));
    const total = weights.reduce((a, b) => a + b, 0);
    return weights.map((w) => w / total);
  };
  if (topK > 0) {
    const kth = [...z].sort((a, b) => b - a)[Math.min(topK, z.length) - 1] as number;
    z = z.map((x) => (x < kth ? Number.NEGATIVE_INFINITY : x));
  }
  if (topP < 1) {
    const p = normalise(z);
    const order = [...p.keys()].sort((a, b) => (p[b] as number) - (p[a] as number) || a - b);
    let before = 0;
    const kept = new Set<number>();
    for (const i of order) {
      if (before >= topP && kept.size > 0) break;
      kept.add(i);
      before += p[i] as number;
    }
    const smallest = Math.min(...[...kept].map((i) => z[i] as number));
    z = z.map((x) => (x < smallest ? Number.NEGATIVE_INFINITY : x));
  }
  return normalise(z);
}

test("ids follow the inverted cumulative distribution", () => {
  const p = [0.1, 0, 0.4, 0.5];
  const logits = p.map(Math.log);
  const { ids } = drawMany(logits, [0, 0.0999, 0.1001, 0.4999, 0.5001, 1 - 2 ** -24], plain);
  expect(ids).toEqual([0, 0, 2, 2, 3, 3]);
});

test("an id of probability 0 is never drawn, not even at the ends", () => {
  const low = -1e4;
  for (const u of [0, 1 - 2 ** -24, 0.5]) {
    expect(drawMany([low, low, 3, low], [u], plain).ids).toEqual([2]);
    expect(drawMany([1, low, low, 1], [u], plain).ids[0]).toBe(u < 0.5 ? 0 : 3);
    expect(drawMany([9, 9, 0, 0], [u], plain, [0, 1]).ids[0]).toBe(u < 0.5 ? 2 : 3);
  }
});

test("top-k, top-p and temperature give the reference's distribution", () => {
  // Hundredths: equal or clearly different, in float32 as in float64.
  const rows = fc.array(fc.integer({ min: -600, max: 600 }), { minLength: 2, maxLength: 12 });
  const options = fc.record({
    temperature: fc.constantFrom(0.3, 1, 2.5),
    topK: fc.integer({ min: 0, max: 14 }),
    topP: fc.constantFrom(0, 0.05, 0.5, 0.9, 0.999, 1),
  });
  fc.assert(
    fc.property(rows, options, fc.integer({ min: 0, max: 1e6 }), (values, sampling, key) => {
      const logits = values.map((x) => Math.fround(x / 100));
      const forbidden = logits.length > 3 ? [key % logits.length] : [];
      const expected = reference(logits, sampling, forbidden);
      // A nucleus whose edge lies on topP itself may fall either way in float32.
      const sorted = reference(logits, { ...sampling, topP: 1 }, forbidden).sort((a, b) => b - a);
      let mass = 0;
      for (const p of sorted) {
        fc.pre(Math.abs(mass - sampling.topP) > 1e-5 || mass === 0);
        mass += p;
      }
      fc.pre(Math.abs(mass - sampling.topP) > 1e-5 || sampling.topP === 1);
      const uniforms = Array.from({ length: 40 }, (_, i) => Math.fround(uniform(key, i) * (1 - 2 ** -20)));
      const draw = drawMany(logits, uniforms, sampling, forbidden);
      const policy = reference(logits, plain);
      draw.ids.forEach((id, i) => {
        expect(expected[id]).toBeGreaterThan(0);
        expect(draw.sampledLogprobs[i]).toBeCloseTo(Math.log(expected[id] as number), 4);
        expect(draw.logprobs[i]).toBeCloseTo(Math.log(policy[id] as number), 4);
        const before = expected.slice(0, id).reduce((a, b) => a + b, 0);
        expect(uniforms[i]).toBeGreaterThan(before - 1e-5);
        expect(uniforms[i]).toBeLessThan(before + (expected[id] as number) + 1e-5);
      });
    }),
    { numRuns: 150 },
  );
});

test("tokens that tie with the last one kept are kept", () => {
  const filtered = (values: number[], k: number, p: number) =>
    scope(() => filterLogits(fromArray(values, [1, values.length]), k, p).toNumbers());
  const out = Number.NEGATIVE_INFINITY;
  expect(filtered([1, 2, 2, 3], 2, 1)).toEqual([out, 2, 2, 3]);
  expect(filtered([0, 0, 0, 0], 0, 0.3)).toEqual([0, 0, 0, 0]);
  expect(filtered([5, 1, 1], 0, 0.5)).toEqual([5, out, out]);
  expect(filtered([5, 1, 1], 1, 1)).toEqual([5, out, out]);
  expect(filtered([1, 2, 3], 3, 1)).toEqual([1, 2, 3]);
  expect(filtered([1, 2, 3], 99, 1)).toEqual([1, 2, 3]);
  expect(filtered([1, 2, 3], 0, 0)).toEqual([out, out, 3]);
});

test.each([4097, 5000, 8192])("a vocabulary of %i, searched in two levels, follows the same distribution", (size) => {
  const logits = Array.from({ length: size }, (_, i) => Math.fround(normal(size, i) * 4));
  const forbidden = logits.map((_, i) => i).filter((i) => (i >= 256 && i < 512) || i % 3 === 0 || i === size - 1);
  const expected = reference(logits, plain, forbidden);
  const uniforms = [
    0,
    1 - 2 ** -24,
    ...Array.from({ length: 300 }, (_, i) => Math.floor(uniform(3, i) * 2 ** 24) / 2 ** 24),
  ];
  const { ids, sampledLogprobs } = drawMany(logits, uniforms, plain, forbidden);
  const cumulative = [0];
  for (const p of expected) cumulative.push((cumulative.at(-1) as number) + p);
  ids.forEach((id, i) => {
    expect(expected[id]).toBeGreaterThan(0);
    expect(uniforms[i]).toBeGreaterThan((cumulative[id] as number) - 1e-5);
    expect(uniforms[i]).toBeLessThan((cumulative[id + 1] as number) + 1e-5);
    expect(sampledLogprobs[i]).toBeCloseTo(Math.log(expected[id] as number), 4);
  });
  expect(new Set(ids).size).toBeGreaterThan(20);
});

/** Draws n tokens with keyed uniforms and returns the chi-square statistic against the reference, with its degrees of freedom. */
function chiSquare(logits: number[], options: SamplingOptions, forbidden: number[], n: number) {
  const uniforms = Array.from({ length: n }, (_, i) => Math.floor(uniform(7, "chi", i) * 2 ** 24) / 2 ** 24);
  const counts = new Array<number>(logits.length).fill(0);
  for (const id of drawMany(logits, uniforms, options, forbidden).ids) counts[id] = (counts[id] as number) + 1;
  let statistic = 0;
  let freedom = -1;
  reference(logits, options, forbidden).forEach((p, i) => {
    if (p === 0) {
      expect(counts[i]).toBe(0);
      return;
    }
    statistic += ((counts[i] as number) - n * p) ** 2 / (n * p);
    freedom++;
  });
  return { statistic, freedom };
}

test.each([
  [plain, []],
  [{ temperature: 0.7, topK: 0, topP: 1 }, [1]],
  [{ temperature: 1.5, topK: 5, topP: 1 }, []],
  [{ temperature: 1, topK: 0, topP: 0.8 }, [0, 9]],
  [{ temperature: 1.2, topK: 6, topP: 0.9 }, [2]],
])("40,000 draws with %j fit the distribution", (options, forbidden) => {
  const logits = [0.1, 1.5, -0.4, 0.9, 2, -1, 0.3, 1.1, -2, 0.7];
  const { statistic, freedom } = chiSquare(logits, options, forbidden, 40_000);
  // Wilson-Hilferty: the 99.99 % quantile of chi-square
  const limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * Math.sqrt(2 / (9 * freedom))) ** 3;
  expect(freedom).toBeGreaterThan(0);
  expect(statistic).toBeLessThan(limit);
});

test("a skewed distribution fails the same test", () => {
  const logits = [0, 0, 0, 0];
  const skewed = drawMany(
    logits,
    Array.from({ length: 4000 }, (_, i) => uniform(7, i) ** 1.1),
    plain,
  );
  const counts = [0, 1, 2, 3].map((id) => skewed.ids.filter((x) => x === id).length);
  expect(counts.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0)).toBeGreaterThan(21.1);
});

test("greedy takes the largest allowed logit, the first among equals, with log-probability 0 of its own", () => {
  const greedy = { ...plain, greedy: true };
  expect(drawMany([1, 4, 4, 2], [0.9], greedy)).toMatchObject({ ids: [1], sampledLogprobs: [0] });
  const { ids, logprobs } = drawMany([1, 9, 2], [0], greedy, [1]);
  expect(ids).toEqual([2]);
  expect(logprobs[0]).toBeCloseTo(2 - Math.log(Math.exp(1) + Math.exp(9) + Math.exp(2)), 5); // over the whole vocabulary
});

test("a forbidden logit that towers over the others does not swallow the distribution", () => {
  const { ids, sampledLogprobs, logprobs } = drawMany([200, 1, 1], [0.2, 0.8], plain, [0]);
  expect(ids).toEqual([1, 2]);
  expect(sampledLogprobs[0]).toBeCloseTo(Math.log(0.5), 5);
  expect(logprobs[0]).toBeCloseTo(-199, 3);
});

test("half-precision logits are widened first", () => {
  const ids = scope(() => {
    using sampler = new TokenSampler(3, [], plain, "cpu");
    const logits = fromArray([0, 1, 2], [1, 3], { dtype: "bfloat16" });
    const draw = sampler.draw(logits, fromArray([0.5], [1]));
    expect(draw.logprobs.dtype).toBe("float32");
    expect(draw.logprobs.item()).toBeCloseTo(2 - Math.log(1 + Math.E + Math.E ** 2), 5);
    return draw.ids.toNumbers();
  });
  expect(ids).toEqual([2]);
});

test.each([1e-30, 1e30])("temperature %d leaves numbers", (temperature) => {
  const { ids, sampledLogprobs } = drawMany([-80, 90, 5], [0.1, 0.5, 0.9], { ...plain, temperature }, [0]);
  expect(ids).toEqual(temperature < 1 ? [1, 1, 1] : [1, 2, 2]);
  for (const p of sampledLogprobs) expect(p).toBeCloseTo(temperature < 1 ? 0 : -Math.log(2), 6);
});

test.each([
  [{ temperature: 0, topK: 0, topP: 1 }, /temperature must be above 0, got 0/],
  [{ temperature: Number.NaN, topK: 0, topP: 1 }, /temperature/],
  [{ temperature: 1e-46, topK: 0, topP: 1 }, /temperature must be above 0, got 1e-46/], // 0 in float32
  [{ temperature: 1e39, topK: 0, topP: 1 }, /temperature/], // infinite in float32
  [{ temperature: 1, topK: -1, topP: 1 }, /topK/],
  [{ temperature: 1, topK: 1.5, topP: 1 }, /topK/],
  [{ temperature: 1, topK: 0, topP: 1.1 }, /topP/],
])("refuses %j", (options, message) => {
  expect(() => new TokenSampler(3, [], options, "cpu")).toThrow(ConfigError);
  expect(() => new TokenSampler(3, [], options, "cpu")).toThrow(message);
});

test("refuses to forbid every id", () => {
  expect(() => new TokenSampler(2, [0, 1], plain, "cpu")).toThrow(/every id of the vocabulary is forbidden/);
});
