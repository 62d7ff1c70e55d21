/** Every loss against a plain PyTorch reference (scripts/make-loss-cases.py), numeric cases of other projects' tests, closed forms and finite differences. */

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { LOSS_NAMES } from "../../src/config/algorithm.ts";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray } from "../../src/torch/tensor.ts";
import { packBatch } from "../../src/trainer/batch.ts";
import { klOfCompletion } from "../../src/trainer/kl.ts";
import { LOSS_STATS, lossMetrics, policyLoss } from "../../src/trainer/loss.ts";
import { LOSSES } from "../../src/trainer/losses/table.ts";
import { tokenWeights } from "../../src/trainer/token-weights.ts";
import { fakeCompletion, fakeGroup } from "./fakes.ts";

type Trainer = Config["trainer"];
const trainerOf = (knobs: object = {}): Trainer =>
  configSchema.parse({ model: { path: "unused" }, trainer: knobs }).trainer;

interface Given {
  logprobs: number[][]; // ragged, [completions, tokens], as are the next two
  old: number[][] | null;
  reference?: number[][] | undefined;
  advantages: number[]; // [completions]
}

interface Found extends Record<string, unknown> {
  policy: number;
  kl: number;
  total: number;
  gradient: number[];
}

/** The loss of a batch of completions in one pack, its weights in double precision. */
function lossOf({ logprobs, old, reference, advantages }: Given, config: Trainer, dtype: DType = "float64"): Found {
  const lengths = logprobs.map((row) => row.length);
  const group = fakeGroup(
    lengths.map(() => 0),
    "q",
    lengths,
  );
  const weightOf = tokenWeights([group], config);
  return scope(() => {
    const vector = (rows: number[][]) => fromArray(rows.flat(), [rows.flat().length], { dtype });
    const spread = (values: number[]) => vector(lengths.map((n, i) => new Array<number>(n).fill(values[i] as number)));
    const { gradient, stats } = policyLoss(
      {
        logprobs: vector(logprobs),
        entropy: vector(logprobs),
        oldLogprobs: old && vector(old),
        referenceLogprobs: reference ? vector(reference) : null,
        samplerLogprobs: vector(logprobs),
        advantages: spread(advantages),
        weights: spread(group.completions.map(weightOf)),
        lengths,
      },
      config,
    );
    const named = Object.fromEntries(stats.toNumbers().map((value, i) => [LOSS_STATS[i] as string, value]));
    const total = (named.policy as number) + config.klCoef * (named.kl as number);
    return { ...named, total, gradient: gradient.toNumbers() } as never;
  });
}

interface Case extends Trainer {
  firstUpdate: boolean;
  logprobs: number[][];
  old: number[][];
  reference: number[][];
  advantages: number[];
  gradient: number[][];
  policy: number;
  kl: number;
}

const { cases } = JSON.parse(readFileSync(new URL("loss-cases.json", import.meta.url), "utf8")) as { cases: Case[] };
const nameOf = (given: Case) =>
  `${given.loss}, ratio of ${given.ratio}, ${given.lossAggregation}, ${given.klEstimator}${given.dualClip ? ", dual clip" : ""}${given.firstUpdate ? ", first update" : ""}`;
const given = (one: Case): Given => ({ ...one, old: one.firstUpdate ? null : one.old });

test("the cases cover every loss and estimator", () => {
  expect(new Set(cases.map(({ loss }) => loss))).toEqual(new Set(LOSS_NAMES));
  expect(Object.keys(LOSSES).sort()).toEqual([...LOSS_NAMES].sort());
  expect(new Set(cases.map(({ klEstimator }) => klEstimator))).toEqual(new Set(["k1", "k2", "k3"]));
});

test.each(cases.map((one): [string, Case] => [nameOf(one), one]))("reference: %s", (_name, one) => {
  const config = { ...trainerOf(), ...one };
  for (const [dtype, digits] of [
    ["float64", 12],
    ["float32", 5],
  ] as const) {
    const found = lossOf(given(one), config, dtype);
    expect(found.policy).toBeCloseTo(one.policy, digits);
    expect(found.kl).toBeCloseTo(one.kl, digits);
    for (const [t, slope] of one.gradient.flat().entries()) expect(found.gradient[t]).toBeCloseTo(slope, digits);
  }
});

/** Ratios well inside and outside every band, on both sides, in completions of three lengths. */
const old = [[-1.2, -0.9, -2.2], [-0.3], [-1.1, -13.9, -0.75, -0.4]];
const policy = [[-1.1, -0.2, -2.3], [-0.9], [-1.7, -14, -0.7, -0.5]];
const reference = [[-1.3, -0.25, -2], [-1.4], [-1.6, -30, -0.9, -0.1]]; // one beyond the clamp
const moved: Given = { logprobs: policy, old, reference, advantages: [0.9, -1.2, -0.7] };

test.each(
  LOSS_NAMES.filter((loss) => loss !== "cispo").flatMap((loss) =>
    (["k1", "k2", "k3"] as const).map((klEstimator) => ({
      loss,
      klEstimator,
      ...(loss !== "sapo" && { dualClip: 1.5 }),
    })),
  ),
)("the gradient is the finite difference of the value: %j", (knobs) => {
  const config = trainerOf(knobs);
  const { gradient } = lossOf(moved, config);
  const h = 1e-6;
  let at = 0;
  for (const [i, row] of policy.entries()) {
    for (const t of row.keys()) {
      const shifted = (by: number) => {
        const logprobs = policy.map((values, k) => values.map((value, l) => (k === i && l === t ? value + by : value)));
        return lossOf({ ...moved, logprobs }, config).total;
      };
      expect(gradient[at++]).toBeCloseTo((shifted(h) - shifted(-h)) / (2 * h), 7);
    }
  }
});

const one = (ratio: number, advantage: number, logprob = -1): Given => ({
  logprobs: [[logprob]],
  old: [[logprob - Math.log(ratio)]],
  advantages: [advantage],
});

test("slime tests/test_policy_loss.py: ratio [2, 2, .5], A [2, -2, 2], eps .2, dual clip 1.5", () => {
  const config = trainerOf({ dualClip: 1.5 });
  for (const [i, [ratio, advantage]] of (
    [
      [2, 2],
      [2, -2],
      [0.5, 2],
    ] as const
  ).entries()) {
    const found = lossOf(one(ratio, advantage), config);
    expect(found.policy).toBeCloseTo([-2.4, 3, -1][i] as number, 12);
    expect(found.gradient[0]).toBeCloseTo([0, 0, -1][i] as number, 12);
    expect(found.clipHigh).toBe(i < 2 ? 1 : 0);
  }
});

test("slime tests/test_cispo_loss.py: ratio [1, 1.14, 1.56, .4] in -.2/+.28 -> weights [1, 1.14, 1.28, .8]", () => {
  const config = trainerOf({ loss: "cispo", epsLow: 0.2, epsHigh: 0.28 });
  const weights = [1, 1.14, 1.28, 0.8];
  const advantages = [1, -0.5, 2, -1];
  const logprobs = [-0.7, -1.2, -0.4, -2.1];
  for (const [i, ratio] of [1, 1.14, 1.56, 0.4].entries()) {
    const [weight, advantage, logprob] = [weights, advantages, logprobs].map((row) => row[i] as number) as [
      number,
      number,
      number,
    ];
    const found = lossOf(one(ratio, advantage, logprob), config);
    expect(found.policy).toBeCloseTo(-weight * advantage * logprob, 12);
    expect(found.gradient[0]).toBeCloseTo(-weight * advantage, 12); // never 0, however far the policy has gone
    expect([found.clipLow, found.clipHigh]).toEqual([i === 3 ? 1 : 0, i === 2 ? 1 : 0]);
  }
});

test("AReaL tests/test_functional.py: SAPO at ratio 1 has gate 2 and loss -2; its slope there is GRPO's", () => {
  const found = lossOf(one(1, 1), trainerOf({ loss: "sapo" }));
  expect(found.policy).toBeCloseTo(-2, 12);
  expect(found.gradient[0]).toBeCloseTo(-1, 12);
  // Farther out the slope is 4 p (1 - p) rho A with p the sigmoid of tau (rho - 1).
  for (const [ratio, advantage, tau] of [
    [1.8, 1, 1],
    [0.3, 1, 1],
    [1.8, -1, 1.05],
    [0.3, -1, 1.05],
  ] as const) {
    const p = 1 / (1 + Math.exp(-tau * (ratio - 1)));
    expect(lossOf(one(ratio, advantage), trainerOf({ loss: "sapo" })).gradient[0]).toBeCloseTo(
      -4 * p * (1 - p) * ratio * advantage,
      12,
    );
  }
});

test.each([
  [0.5, 1.6487212707],
  [1, Math.E],
])("AReaL tests/test_functional.py: a completion's ratio is exp(mean log-ratio), %f -> %f", (mean, ratio) => {
  const config = trainerOf({ loss: "gspo", epsHigh: 9 });
  const logprobs = [[-1, -2, -3], [-1]];
  const before = [[-1 - mean + 0.3, -2 - mean, -3 - mean - 0.3], [-1]]; // the other completion has not moved
  const found = lossOf({ logprobs, old: before, advantages: [1, 0] }, config);
  expect(found.policy).toBeCloseTo(-ratio / 2, 9);
  for (const slope of found.gradient.slice(0, 3)) expect(slope).toBeCloseTo(-ratio / 6, 9);
});

test("gspo does not clip a completion for one token that has moved far", () => {
  const logprobs = [[-1, -1, -1, -1]];
  const before = [[-1.3, -0.9, -0.9, -0.9]]; // ratios e^.3, e^-.1, ...: their geometric mean is 1
  const narrow = { epsLow: 0.05, epsHigh: 0.05 };
  const gspo = lossOf({ logprobs, old: before, advantages: [1] }, trainerOf({ loss: "gspo", ...narrow }));
  const grpo = lossOf({ logprobs, old: before, advantages: [1] }, trainerOf({ loss: "grpo", ...narrow }));
  for (const slope of gspo.gradient) expect(slope).toBeCloseTo(-0.25, 12);
  expect(grpo.gradient[0]).toBeCloseTo(0, 12);
  expect(gspo.clipHigh).toBe(0);
  expect(grpo.clipHigh).toBe(0.25);
});

test("in the first update all losses have the gradient of GRPO, but for what tokens are divided by", () => {
  const first: Given = { ...moved, old: null };
  const shared = { lossAggregation: "sequence" } as const;
  const expected = lossOf(first, trainerOf()).gradient;
  for (const loss of LOSS_NAMES) {
    const config = { ...trainerOf({ loss }), ...shared };
    for (const [t, slope] of lossOf(first, config).gradient.entries())
      expect(slope).toBeCloseTo(expected[t] as number, 12);
    expect(lossOf(first, config).clipHigh).toBe(0);
  }
});

test("a completion's ratio does not know what else is in the pack", () => {
  const config = trainerOf({ loss: "gspo" });
  const together = lossOf(moved, config, "float32").gradient;
  const apart = moved.logprobs.flatMap((row, i) => {
    const alone = { logprobs: [row], old: [old[i] as number[]], reference: [reference[i] as number[]] };
    // Three completions of which one is looked at: 1 / (3 Lc) a token.
    return lossOf({ ...alone, advantages: [moved.advantages[i] as number] }, config, "float32").gradient.map(
      (g) => g / 3,
    );
  });
  for (const [t, slope] of together.entries()) expect(apart[t]).toBeCloseTo(slope, 7);
});

// Closed forms of value and slope by the policy's log-probability, at d = reference - policy.
test.each([
  ["k1", 0.5, -0.5, 1],
  ["k1", -2, 2, 1],
  ["k2", 0.5, 0.125, -0.5],
  ["k2", -2, 2, 2],
  ["k3", 0.5, 0.1487212707, -0.6487212707],
  ["k3", -2, 1.1353352832, 0.8646647168],
  ["k1", 12, -11, 0],
  ["k2", -12, 60.5, 0],
] as const)("%s at d = %f", (klEstimator, d, value, slope) => {
  const config = trainerOf({ klEstimator, klIn: "reward", klCoef: 1 });
  const found = lossOf({ logprobs: [[-3]], old: null, reference: [[-3 + d]], advantages: [0] }, config);
  expect(found.kl).toBeCloseTo(value, 9);
  expect(found.gradient[0]).toBeCloseTo(slope, 9);
  expect(klOfCompletion([-3 + d, -1], [-3, -1], config)).toBeCloseTo(value, 9); // of a reward: the sum over tokens
});

test("over tokens of the policy the slopes of k2 and of k1 in the reward average to the gradient of the divergence, k1's in the loss to 0", () => {
  const policyOf = (logits: number[]) => {
    const sum = logits.reduce((total, x) => total + Math.exp(x), 0);
    return logits.map((x) => Math.exp(x) / sum);
  };
  const logits = [0.3, -1.2, 0.9];
  const ref = policyOf([0.1, 0.4, -0.2]);
  const p = policyOf(logits);
  const divergence = (x: number[]) => policyOf(x).reduce((sum, q, i) => sum + q * Math.log(q / (ref[i] as number)), 0);
  for (const j of [0, 1, 2]) {
    const bumped = (h: number) => divergence(logits.map((x, i) => x + (i === j ? h : 0)));
    const exact = (bumped(1e-5) - bumped(-1e-5)) / 2e-5;
    const score = (i: number) => (i === j ? 1 : 0) - (p[j] as number); // d log p_i / d logit_j
    const logRatio = (i: number) => Math.log((p[i] as number) / (ref[i] as number));
    const mean = (of: (i: number) => number) => p.reduce((sum, q, i) => sum + q * of(i), 0);
    const slopes = (klEstimator: "k1" | "k2") =>
      p.map((q, i) => {
        const config = trainerOf({ klEstimator, klIn: "reward", klCoef: 1 });
        const given = {
          logprobs: [[Math.log(q)]],
          old: null,
          reference: [[Math.log(ref[i] as number)]],
          advantages: [0],
        };
        return lossOf(given, config).gradient[0] as number;
      });
    const [k1, k2] = [slopes("k1"), slopes("k2")];
    expect(mean((i) => (k2[i] as number) * score(i))).toBeCloseTo(exact, 9);
    expect(mean((i) => logRatio(i) * score(i))).toBeCloseTo(exact, 9); // REINFORCE with k1 as a cost
    expect(mean((i) => (k1[i] as number) * score(i))).toBeCloseTo(0, 12);
  }
});

test("weights: a constant length of 8 over token losses [1, 2] and [3, 4, 5, 6] gives 1.3125", () => {
  const config = { ...trainerOf({ loss: "dr_grpo", lossLength: 8 }), tokensPerPack: 1 };
  const groups = [
    [-1, -2],
    [-3, -4, -5, -6],
  ].map((row) => ({ ...fakeGroup([0], "q", [row.length]), advantages: [0] }));
  const losses = [
    [1, 2],
    [3, 4, 5, 6],
  ];
  const packs = packBatch(groups, config);
  expect(packs).toHaveLength(2);
  const total = packs.reduce(
    (sum, { weights }, i) => sum + weights.reduce((s, w, t) => s + w * (losses[i]?.[t] as number), 0),
    0,
  );
  expect(total).toBeCloseTo(1.3125, 7);
});

test("lossLength is rollout.maxNewTokens unless it is set", () => {
  expect(trainerOf({ loss: "dr_grpo" }).lossLength).toBe(256);
  expect(configSchema.parse({ model: { path: "m" }, rollout: { maxNewTokens: 31 } }).trainer.lossLength).toBe(31);
});

test("weights with maskTruncated: those of a batch without the truncated completions", () => {
  const cut = fakeCompletion(4, { finish: "length" });
  const batch = [{ completions: [fakeCompletion(2), cut] }, { completions: [fakeCompletion(6), fakeCompletion(3)] }];
  const without = [{ completions: [fakeCompletion(2)] }, { completions: [fakeCompletion(6), fakeCompletion(3)] }];
  for (const lossAggregation of ["sequence", "token", "constant"] as const) {
    const config = { lossAggregation, lossLength: 10, maskTruncated: true };
    const weightOf = tokenWeights(batch, config);
    const expected = tokenWeights(without, config);
    expect(weightOf(cut)).toBe(0);
    for (const completion of without.flatMap(({ completions }) => completions))
      expect(weightOf(completion)).toBe(expected(completion));
    expect(tokenWeights(batch, { ...config, maskTruncated: false })(cut)).toBeGreaterThan(0);
  }
});

test("an entropy bonus of c: d loss / d entropy is -c times the token's weight; without one there is nothing to compute", () => {
  scope(() => {
    const vector = (values: number[]) => fromArray(values, [values.length], { dtype: "float64" });
    const ones = vector([1, 1, 1]);
    const weights = [0.5, 0.3, 0.2];
    const inputs = {
      ...{ logprobs: ones, entropy: vector([2, 1, 3]), oldLogprobs: null, referenceLogprobs: null },
      ...{ samplerLogprobs: ones, advantages: ones, weights: vector(weights), lengths: [2, 1] },
    };
    const { entropyGradient, stats } = policyLoss(inputs, trainerOf({ entropyCoef: 0.1 }));
    expect(entropyGradient?.toNumbers()).toEqual(weights.map((w) => -0.1 * w));
    const metrics = lossMetrics([stats.toNumbers()], { klCoef: 0, entropyCoef: 0.1 });
    expect(metrics["loss/total"]).toBeCloseTo(-1 - 0.1 * (0.5 * 2 + 0.3 + 0.2 * 3), 12);
    expect(policyLoss(inputs, trainerOf()).entropyGradient).toBeNull();
  });
});
