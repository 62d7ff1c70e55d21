/**
 * GRPO's arithmetic against independent sources: a plain PyTorch reference over padded matrices (scripts/make-grpo-cases.py), and numeric
 * cases out of other projects' tests, each named.
 */

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { meanStd } from "../../src/reward/statistics.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray } from "../../src/torch/tensor.ts";
import { batchAdvantages } from "../../src/trainer/advantage.ts";
import { packBatch } from "../../src/trainer/batch.ts";
import { klOfTokens } from "../../src/trainer/kl.ts";
import { LOSS_STATS, policyLoss } from "../../src/trainer/loss.ts";
import { fakeGroup } from "./fakes.ts";

const groupAdvantages = (rewards: readonly number[], advantageEps: number): number[] =>
  batchAdvantages([rewards], { advantage: "grpo", advantageScale: "group", advantageEps })[0] as number[];

const trainer = configSchema.parse({ model: { path: "unused" } }).trainer;

interface Case
  extends Pick<Config["trainer"], "lossAggregation" | "epsLow" | "epsHigh" | "klCoef" | "klClamp" | "advantageEps"> {
  firstUpdate: boolean;
  rewards: number[][]; // [groups, G]
  logprobs: number[][]; // ragged, [completions, tokens], as are the next three
  old: number[][];
  reference: number[][];
  gradient: number[][];
  advantages: number[]; // [completions]
  loss: number;
  policy: number;
  kl: number;
  clipLow: number;
  clipHigh: number;
}

const { cases } = JSON.parse(readFileSync(new URL("grpo-cases.json", import.meta.url), "utf8")) as { cases: Case[] };
const named = cases.map((given, i): [string, Case] => [
  `${i}: ${given.lossAggregation}, ${given.firstUpdate ? "first update" : `clipped at -${given.epsLow} +${given.epsHigh}`}, clamp ${given.klClamp}`,
  given,
]);

interface Found {
  stats: Record<string, number>;
  gradient: number[]; // over all tokens of the batch
}

/** Our loss of a case, its packs added up. `exactWeights`: weights in double precision instead of those of packBatch. */
function ours(given: Case, dtype: DType, options: { tokensPerPack?: number; exactWeights?: boolean } = {}): Found {
  const { tokensPerPack = 1e6, exactWeights = false } = options;
  const { lossAggregation, epsLow, epsHigh, klCoef, klClamp, advantageEps } = given;
  const config = { ...trainer, lossAggregation, epsLow, epsHigh, klCoef, klClamp, advantageEps, tokensPerPack };
  let completion = 0;
  const groups = given.rewards.map((rewards, g) => {
    const lengths = rewards.map(() => (given.logprobs[completion++] as number[]).length);
    return { ...fakeGroup(rewards, `q${g}`, lengths), advantages: groupAdvantages(rewards, given.advantageEps) };
  });
  const [logprobs, old, reference] = [given.logprobs, given.old, given.reference].map((rows) => rows.flat());
  const lengths = given.logprobs.map((row) => row.length);
  const tokens = lengths.reduce((sum, n) => sum + n, 0);
  const exact = lengths.flatMap((n) =>
    new Array<number>(n).fill(given.lossAggregation === "token" ? 1 / tokens : 1 / (lengths.length * n)),
  );
  const exactAdvantages = groups.flatMap(({ advantages }, g) =>
    advantages.flatMap((a, i) => new Array<number>(groups[g]?.completions[i]?.ids.length ?? 0).fill(a)),
  );

  const stats: Record<string, number> = {};
  const gradient: number[] = [];
  for (const pack of packBatch(groups, config)) {
    const [from, to] = [gradient.length, gradient.length + pack.weights.length];
    scope(() => {
      const vector = (values: ArrayLike<number>) => fromArray(Array.from(values), [to - from], { dtype });
      const part = (values: number[] | undefined) => vector((values as number[]).slice(from, to));
      const loss = policyLoss(
        {
          logprobs: part(logprobs),
          entropy: part(logprobs),
          oldLogprobs: given.firstUpdate ? null : part(old),
          referenceLogprobs: part(reference),
          samplerLogprobs: part(logprobs),
          advantages: exactWeights ? part(exactAdvantages) : vector(pack.advantages),
          weights: exactWeights ? part(exact) : vector(pack.weights),
          lengths: pack.lengths,
        },
        config,
      );
      for (const [i, value] of loss.stats.toNumbers().entries()) {
        const name = LOSS_STATS[i] as string;
        stats[name] = (stats[name] ?? 0) + value;
      }
      gradient.push(...loss.gradient.toNumbers());
    });
  }
  return { stats, gradient };
}

function expectAlike({ stats, gradient }: Found, given: Case, tolerance: number): void {
  const near = (got: number, want: number, scale = Math.abs(want)) =>
    expect(Math.abs(got - want)).toBeLessThanOrEqual(tolerance * Math.max(1, scale));
  near(stats.policy as number, given.policy);
  near(stats.kl as number, given.kl);
  near(stats.clipLow as number, given.clipLow);
  near(stats.clipHigh as number, given.clipHigh);
  near((stats.policy as number) + given.klCoef * (stats.kl as number), given.loss);
  const expected = given.gradient.flat();
  expect(gradient).toHaveLength(expected.length);
  for (const [t, slope] of expected.entries()) near(gradient[t] as number, slope);
}

test("the cases cover both aggregations, clipping on both sides and the clamp", () => {
  expect(cases).toHaveLength(24);
  expect(cases.filter(({ clipLow }) => clipLow > 0).length).toBeGreaterThan(3);
  expect(cases.filter(({ clipHigh }) => clipHigh > 0).length).toBeGreaterThan(3);
  const beyond = cases.filter(({ logprobs, reference, klClamp }) =>
    logprobs.flat().some((value, t) => Math.abs((reference.flat()[t] as number) - value) > klClamp),
  );
  expect(beyond.length).toBeGreaterThan(10);
});

test.each(named)("reference %s: advantages", (_name, { rewards, advantageEps, advantages }) => {
  const found = rewards.flatMap((group) => groupAdvantages(group, advantageEps));
  for (const [i, advantage] of advantages.entries()) expect(found[i]).toBeCloseTo(advantage, 12);
});

test.each(named)("reference %s: loss, KL, clip fractions and gradient in float64", (_name, given) => {
  expectAlike(ours(given, "float64", { exactWeights: true }), given, 1e-12);
});

test.each(named)("reference %s: the same through packBatch, in float32, in one pack or many", (_name, given) => {
  const together = ours(given, "float32");
  const apart = ours(given, "float32", { tokensPerPack: 1 });
  expectAlike(together, given, 3e-6);
  expectAlike(apart, given, 3e-6);
  expect(apart.gradient).toEqual(together.gradient); // a token's gradient does not know its pack
});

/** Token losses as they are: with ratio 1 and no KL the loss of a token is minus its advantage. */
function aggregate(
  losses: number[][],
  lossAggregation: Config["trainer"]["lossAggregation"],
  tokensPerPack = 1e6,
): number {
  const group = fakeGroup(
    losses.map(() => 0),
    "q",
    losses.map((row) => row.length),
  );
  const groups = losses.map((_, i) => ({ ...group, completions: group.completions.slice(i, i + 1), advantages: [0] }));
  const flat = losses.flat();
  let at = 0;
  let total = 0;
  for (const { weights, lengths } of packBatch(groups, { ...trainer, lossAggregation, tokensPerPack })) {
    scope(() => {
      const n = weights.length;
      const values = fromArray(
        flat.slice(at, at + n).map((loss) => -loss),
        [n],
        { dtype: "float64" },
      );
      const logprobs = fromArray(new Array(n).fill(-1), [n], { dtype: "float64" });
      const { stats } = policyLoss(
        {
          logprobs,
          entropy: logprobs,
          oldLogprobs: null,
          referenceLogprobs: null,
          samplerLogprobs: logprobs,
          advantages: values,
          weights: fromArray(Array.from(weights), [n], { dtype: "float64" }),
          lengths,
        },
        trainer,
      );
      total += stats.toNumbers()[0] as number;
      at += n;
    });
  }
  return total;
}

// OpenRLHF tests/test_loss_aggregation.py; the last is two token losses against four.
test.each([
  ["token", [[1, 2], [3, 4, 5], [7]], 22 / 6],
  ["sequence", [[1, 3], [2, 4], [8]], 13 / 3],
  [
    "token",
    [
      [1, 2],
      [3, 4, 5],
      [6, 7],
    ],
    4,
  ], // over micro-batches too: not the mean of their means, 3.25
  [
    "sequence",
    [
      [1, 2],
      [3, 4, 5, 6],
    ],
    3,
  ],
  [
    "token",
    [
      [1, 2],
      [3, 4, 5, 6],
    ],
    3.5,
  ],
] as const)("aggregation %s of %j is %f, also one completion to a pack", (how, losses, expected) => {
  const rows = losses.map((row) => [...row]);
  expect(aggregate(rows, how)).toBeCloseTo(expected, 6);
  expect(aggregate(rows, how, 1)).toBeCloseTo(expected, 6);
});

test("slime tests/test_policy_loss.py without its dual clip: ratios 2, 2, 0.5 with advantages 2, -2, 2 in a band of 0.2", () => {
  const expected = [-2.4, 4, -1]; // its dual clip at 1.5 would make the second 3
  scope(() => {
    for (const [i, [ratio, advantage]] of [
      [2, 2],
      [2, -2],
      [0.5, 2],
    ].entries()) {
      const one = (value: number | undefined) => fromArray([value as number], [1], { dtype: "float64" });
      const { stats } = policyLoss(
        {
          logprobs: one(Math.log(ratio as number)),
          entropy: one(0),
          oldLogprobs: one(0),
          referenceLogprobs: null,
          samplerLogprobs: one(0),
          advantages: one(advantage),
          weights: one(1),
          lengths: [1],
        },
        { ...trainer, epsLow: 0.2, epsHigh: 0.2 },
      );
      expect(stats.toNumbers()[0]).toBeCloseTo(expected[i] as number, 12);
    }
  });
});

test("open-r1#239: on the policy, with rewards that differ, the loss that is logged is beta times KL and the gradient is not 0", () => {
  const onPolicy = cases.filter(({ firstUpdate, lossAggregation }) => firstUpdate && lossAggregation === "sequence");
  expect(onPolicy.length).toBeGreaterThan(3);
  for (const given of onPolicy) {
    const { stats, gradient } = ours(given, "float64", { exactWeights: true });
    expect(stats.policy).toBeCloseTo(0, 12); // groups of one size: their advantages even out
    expect(given.loss).toBeCloseTo(given.klCoef * (stats.kl as number), 12);
    if (given.rewards.some((group) => new Set(group).size > 1))
      expect(Math.max(...gradient.map(Math.abs))).toBeGreaterThan(1e-3);
  }
});

test("AReaL tests/test_adv_norm_config.py: with n = 3 the standard deviations of ddof 1 and 0 differ by sqrt(1.5); ours is ddof 1", () => {
  const rewards = [0, 1, 5];
  const mean = 2;
  const ddof0 = Math.sqrt(rewards.reduce((sum, r) => sum + (r - mean) ** 2, 0) / 3);
  for (const [i, advantage] of groupAdvantages(rewards, 0).entries())
    expect(advantage).toBeCloseTo(((rewards[i] as number) - mean) / (ddof0 * Math.sqrt(1.5)), 12);
});

test("TRL tests/test_utils.py: nanstd of [1, 2, 3, nan] is 1, of [3, 5] 1.41421", () => {
  expect(meanStd([1, 2, 3, Number.NaN]).std).toBe(1);
  expect(meanStd([3, 5]).std).toBeCloseTo(Math.SQRT2, 5);
});

test("verl tests/trainer/ppo/test_core_algos_on_cpu.py: looped and vectorised advantages agree, eps 1e-6, shuffled groups", () => {
  let state = 1;
  const random = () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
  const ids = Array.from({ length: 512 }, () => Math.floor(random() * 64));
  const scores = ids.map(() => Math.floor(random() * 4) / 3);
  for (const id of new Set(ids)) {
    const rewards = scores.filter((_, i) => ids[i] === id);
    if (rewards.length < 2) continue; // verl takes mean 0 and std 1 there; a group of ours has at least two
    const mean = rewards.reduce((sum, r) => sum + r, 0) / rewards.length;
    // By sums of squares instead of squares of differences.
    const variance = (rewards.reduce((sum, r) => sum + r * r, 0) - rewards.length * mean * mean) / (rewards.length - 1);
    const found = groupAdvantages(rewards, 1e-6);
    for (const [i, r] of rewards.entries())
      expect(found[i]).toBeCloseTo((r - mean) / (Math.sqrt(Math.max(0, variance)) + 1e-6), 5);
    expect(found.reduce((sum, a) => sum + a, 0)).toBeCloseTo(0, 9);
  }
});

// d = reference - policy -> value, d value / d policy: closed forms, on both sides of the clamp at 11.
test.each([
  [0, 0],
  [1e-3, 5.0016670833e-7],
  [-1e-3, 4.99833375e-7],
  [0.1, 0.00517091807564762],
  [-0.1, 0.00483741803595957],
  [1, 0.718281828459045],
  [-1, 0.367879441171442],
  [11, 59862.14171519782],
  [-11, 10.00001670170079],
  [12, 59862.14171519782],
  [-12, 10.00001670170079],
])("k3 at %f in float32 keeps its digits", (d, value) => {
  scope(() => {
    const [found] = klOfTokens(fromArray([d], [1]), fromArray([0], [1]), {
      klEstimator: "k3",
      klClamp: 11,
    }).toNumbers();
    expect(Math.abs((found as number) - value)).toBeLessThanOrEqual(
      Math.abs(value) * 2e-4 * (Math.abs(d) < 0.01 ? 1 : 0.01),
    );
    expect(found).toBeGreaterThanOrEqual(0);
  });
});
