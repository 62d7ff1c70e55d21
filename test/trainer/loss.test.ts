import { expect, test } from "vitest";
import { configSchema } from "../../src/config/schema.ts";
import { enableGrad, grad } from "../../src/torch/autograd.ts";
import { sum } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { klOfTokens } from "../../src/trainer/kl.ts";
import { LOSS_STATS, lossMetrics, policyLoss, readTogether } from "../../src/trainer/loss.ts";

const trainer = configSchema.parse({ model: { path: "unused" } }).trainer;

interface Case {
  logprobs: number[];
  old?: number[];
  reference?: number[];
  advantages: number[];
  weights: number[];
  entropy?: number[];
  sampler?: number[];
  lengths?: number[];
}

/** The loss of a case in float64, by names of LOSS_STATS, and its gradient. */
function lossOf(given: Case, config: Partial<typeof trainer> = {}): Record<string, number> & { gradient: number[] } {
  return scope(() => {
    const vector = (values: number[]): Tensor => fromArray(values, [values.length], { dtype: "float64" });
    const settings = { ...trainer, ...config };
    const { gradient, stats } = policyLoss(
      {
        logprobs: vector(given.logprobs),
        entropy: vector(given.entropy ?? given.logprobs.map(() => 0)),
        oldLogprobs: given.old ? vector(given.old) : null,
        referenceLogprobs: given.reference ? vector(given.reference) : null,
        samplerLogprobs: vector(given.sampler ?? given.logprobs),
        advantages: vector(given.advantages),
        weights: vector(given.weights),
        lengths: given.lengths ?? [given.logprobs.length],
      },
      settings,
    );
    const named = Object.fromEntries(stats.toNumbers().map((value, i) => [LOSS_STATS[i] as string, value]));
    const total = (named.policy as number) + settings.klCoef * (named.kl as number);
    return { ...named, total, gradient: gradient.toNumbers() } as never;
  });
}

// d = reference - policy -> value, d value / d policy
test.each([
  [0, 0, 0],
  [0.1, 0.005170918, -0.105170918],
  [-0.1, 0.004837418, 0.095162582],
  [1, 0.718281828, -1.718281828],
  [-1, 0.367879441, 0.632120559],
  [11.5, 59862.14172, 0],
  [40, 59862.14172, 0],
  [-11.5, 10.0000167, 0],
  [-40, 10.0000167, 0],
])("k3 at d = %f", (d, value, slope) => {
  scope(() => {
    const policy = fromArray([-2], [1], { dtype: "float64" }).setRequiresGrad(true);
    const reference = fromArray([-2 + d], [1], { dtype: "float64" });
    const kl = enableGrad(() => klOfTokens(reference, policy, { klEstimator: "k3", klClamp: 11 }));
    const [gradient] = grad([kl], [policy], [null]);
    expect(kl.item()).toBeCloseTo(value, value > 100 ? 4 : 8);
    expect((gradient as Tensor).item()).toBeCloseTo(slope, 8);
  });
});

test("on the policy the value is klCoef * KL when the advantages even out, the gradient is not zero", () => {
  const weights = new Array(4).fill(0.25);
  const loss = lossOf({
    logprobs: [-1, -2, -0.5, -3],
    reference: [-1.2, -1.9, -0.5, -2],
    advantages: [1, 1, -1, -1],
    weights,
  });
  expect(loss.policy).toBeCloseTo(0, 12);
  expect(loss.total).toBeCloseTo(0.1 * (loss.kl as number), 12);
  expect(loss.kl).toBeGreaterThan(0);
  for (const [t, d] of [-0.2, 0.1, 0, 1].entries()) {
    const expected = 0.25 * ((t < 2 ? -1 : 1) + 0.1 * (1 - Math.exp(d)));
    expect(loss.gradient[t]).toBeCloseTo(expected, 12);
  }
});

test("aggregation example: token losses [1, 2] and [3, 4, 5, 6]", () => {
  // With ratio 1 and no KL the token loss is -A.
  const given = { logprobs: [-1, -1, -1, -1, -1, -1], advantages: [-1, -2, -3, -4, -5, -6] };
  const sequence = [1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8];
  expect(lossOf({ ...given, weights: sequence }).policy).toBeCloseTo(3, 12);
  expect(lossOf({ ...given, weights: new Array(6).fill(1 / 6) }).policy).toBeCloseTo(3.5, 12);
});

// ratio, advantage -> term of the objective with a band of 0.8 .. 1.28, and d term / d logprob
test.each([
  [1, 1, 1, 1],
  [1.1, 1, 1.1, 1.1],
  [1.5, 1, 1.28, 0],
  [1.5, -1, -1.5, -1.5],
  [0.5, 1, 0.5, 0.5],
  [0.5, -1, -0.8, 0],
  [0.9, -2, -1.8, -1.8],
])("the clipped ratio %f with advantage %f", (ratio, advantage, value, slope) => {
  const given = { logprobs: [-1], old: [-1 - Math.log(ratio)], advantages: [advantage], weights: [1] };
  const loss = lossOf(given, { epsLow: 0.2, epsHigh: 0.28 });
  expect(loss.policy).toBeCloseTo(-value, 12);
  expect(loss.gradient[0]).toBeCloseTo(-slope, 12);
  expect(loss.clipHigh).toBe(ratio > 1.28 && advantage > 0 ? 1 : 0);
  expect(loss.clipLow).toBe(ratio < 0.8 && advantage < 0 ? 1 : 0);
});

test("old log-probabilities equal to the policy's give the same as none", () => {
  const given = {
    logprobs: [-1, -0.3, -2],
    reference: [-1, -1, -1],
    advantages: [1, -2, 0.5],
    weights: [0.5, 0.3, 0.2],
  };
  const { gradient, ...stats } = lossOf(given);
  const again = lossOf({ ...given, old: given.logprobs });
  expect(again).toEqual({ ...stats, gradient });
});

test.each([
  false,
  true,
])("the gradient is the finite difference of the value (several updates a batch: %s)", (several) => {
  const given: Case = {
    logprobs: [-1.1, -0.2, -2.3, -0.9, -1.7, -14],
    reference: [-1.3, -0.25, -2, -1.4, -1.6, -30], // the last beyond the clamp
    advantages: [0.9, 0.9, -1.2, -1.2, 0.4, -0.7],
    weights: [0.2, 0.2, 0.1, 0.1, 0.3, 0.1],
    // Ratios well inside and well outside the band, on both sides.
    ...(several ? { old: [-1.2, -0.9, -2.2, -0.3, -1.1, -13.9] } : {}),
  };
  const h = 1e-6;
  const { gradient } = lossOf(given);
  for (const t of given.logprobs.keys()) {
    const shifted = (by: number) => {
      const logprobs = given.logprobs.map((value, i) => (i === t ? value + by : value));
      // In the first update the ratio's denominator stays at the unshifted policy.
      return lossOf({ ...given, logprobs, old: given.old ?? given.logprobs }).total as number;
    };
    expect(gradient[t]).toBeCloseTo((shifted(h) - shifted(-h)) / (2 * h), 7);
  }
});

test("stats of packs add up to those of the batch", () => {
  const one = { logprobs: [-1, -2], advantages: [1, -1], weights: [0.3, 0.2], entropy: [1, 2], sampler: [-1.1, -2] };
  const two = { logprobs: [-3], advantages: [2], weights: [0.5], entropy: [3], sampler: [-3.4] };
  const both = {
    logprobs: [-1, -2, -3],
    advantages: [1, -1, 2],
    weights: [0.3, 0.2, 0.5],
    entropy: [1, 2, 3],
    sampler: [-1.1, -2, -3.4],
  };
  const row = (given: Case) => {
    const loss = lossOf(given);
    return LOSS_STATS.map((name) => loss[name] as number);
  };
  const whole = lossMetrics([row(both)], { klCoef: 0.1, entropyCoef: 0 });
  const parts = lossMetrics([row(one), row(two)], { klCoef: 0.1, entropyCoef: 0 });
  for (const [name, value] of Object.entries(whole)) expect(parts[name], name).toBeCloseTo(value, 12);
  expect(whole["loss/entropy"]).toBeCloseTo(0.3 + 0.4 + 1.5, 12);
  expect(whole["rollout/logprob_gap_mean"]).toBeCloseTo(0.3 * 0.1 + 0.5 * 0.4, 12);
  expect(whole["rollout/logprob_gap_max"]).toBeCloseTo(0.4, 12);
});

test("a NaN log-probability shows in the stats", () => {
  const loss = lossOf({ logprobs: [-1, Number.NaN], advantages: [1, 1], weights: [0.5, 0.5] });
  expect(loss.policy).toBeNaN();
});

test("several tensors are read in one copy", () => {
  scope(() => {
    const tensors = [fromArray([1, 2], [2]), fromArray([3], []), sum(fromArray([4, 5], [2]))];
    expect(readTogether(tensors)).toEqual([[1, 2], [3], [9]]);
  });
});
