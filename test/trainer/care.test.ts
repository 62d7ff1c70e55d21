/** GRPO-CARE's bonus by hand; its likelihoods against a plain recomputation; runs with it resume bit for bit. */

import { cpSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { BadSamples } from "../../src/data/bad-samples.ts";
import { NumericsError } from "../../src/errors.ts";
import { packGroups } from "../../src/model/packed.ts";
import { answerTokens } from "../../src/reward/answer-tokens.ts";
import { scope } from "../../src/torch/scope.ts";
import { assignAdvantages } from "../../src/trainer/advantage.ts";
import { loadModel, openPipeline, readTrainingData } from "../../src/trainer/assemble.ts";
import { careBonuses, careMetrics, giveBonuses } from "../../src/trainer/care.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { type CompletionRecord, readMetrics } from "../../src/trainer/run-folder.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import { fakeGroup } from "./fakes.ts";
import { deterministic, makeTinyWorld, type TinyWorld, tinyConfig } from "./tiny-run.ts";

let world: TinyWorld;
beforeAll(async () => {
  world = await makeTinyWorld();
}, 120_000);
afterAll(() => rmSync(world.folder, { recursive: true }));

const knobs = { bonus: 0.5, margin: 0, cap: 0.95 };

test.each<[string, number[], (number | null)[], Partial<typeof knobs>, number[]]>([
  // Right: 0.9, 0.5, 0.7; their mean is 0.7, which the third one meets. A wrong one earns nothing, however likely.
  ["at least the mean of the right ones", [1, 1, 0, 1], [0.9, 0.5, 0.99, 0.7], {}, [0.5, 0, 0, 0.5]],
  ["a margin below the mean", [1, 1, 1], [0.9, 0.58, 0.5], { margin: 0.1 }, [0.5, 0.5, 0]], // mean 0.66
  ["on the margin", [1, 1], [0.75, 0.25], { margin: 0.25 }, [0.5, 0.5]],
  ["the cap makes ties: 0.999 does not outshine 0.96", [1, 1, 1], [0.999, 0.96, 0.95], {}, [0.5, 0.5, 0.5]],
  ["without a cap they differ", [1, 1], [0.999, 0.96], { cap: 1 }, [0.5, 0]],
  ["ties of a number whose mean is rounded up", [1, 1, 1], [0.1, 0.1, 0.1], {}, [0.5, 0.5, 0.5]],
  ["a single right one is its own mean", [0, 1, 0, 0], [0.9, 0.01, 0.9, 0.9], {}, [0, 0.5, 0, 0]],
  ["none right", [0, 0, 0], [0.9, 0.5, 0.1], {}, [0, 0, 0]],
  ["all right", [1, 1, 1, 1], [0.8, 0.6, 0.4, 0.2], {}, [0.5, 0.5, 0, 0]],
  ["identical completions earn the same", [1, 1, 1], [0.6, 0.6, 0.3], {}, [0.5, 0.5, 0]],
  ["no answer block: no bonus, and no part in the mean", [1, 1, 1], [null, 0.4, 0.2], {}, [0, 0.5, 0]],
  ["no right one has an answer block", [1, 0], [null, 0.9], {}, [0, 0]],
  ["graded: the mean of the group decides who is right", [0.9, 0.5, 0.2], [0.5, 0.5, 0.9], {}, [0.45, 0, 0]], // mean 0.533
  ["graded: a tenth is not right, even if all have it", [0.1, 0.1], [0.9, 0.9], {}, [0, 0]],
  ["a reward that does not apply (null) is not right", [Number.NaN, 1], [0.9, 0.2], {}, [0, 0.5]],
  ["it applies to nobody", [Number.NaN, Number.NaN], [0.9, 0.2], {}, [0, 0]],
])("%s", (_, accuracies, likelihoods, more, expected) => {
  const { bonuses } = careBonuses(accuracies, likelihoods, { ...knobs, ...more });
  expect(bonuses).toHaveLength(expected.length);
  for (const [i, bonus] of bonuses.entries()) expect(bonus).toBeCloseTo(expected[i] as number, 12);
});

test("advantages are those of rewards with bonuses, less penalties; the rewards stay", () => {
  const group = { ...fakeGroup([1, 1, 0, 0]), penalties: { overlong: [0, 0.25, 0, 0] } };
  group.care = careBonuses(group.rewards, [0.9, 0.3, 0.9, null], knobs);
  assignAdvantages([group], { advantage: "grpo", advantageScale: "none", advantageEps: 0 });
  expect(group.rewards).toEqual([1, 1, 0, 0]);
  expect(group.advantages).toEqual([0.9375, 0.1875, -0.5625, -0.5625]); // of 1.5, 0.75, 0, 0
  expect(careMetrics([group])).toEqual({
    "care/bonus_mean": 0.125,
    "care/rewarded_share": 0.25,
    "care/right_share": 0.5,
    "care/answered_share": 0.75,
    "care/confidence_mean": expect.closeTo(0.7, 12),
    "care/confidence_right": expect.closeTo(0.6, 12),
  });
  expect(careMetrics([fakeGroup([1, 0])])).toEqual({});
  // A group whose answers are all right teaches all the same.
  const right = fakeGroup([1, 1]);
  right.care = careBonuses(right.rewards, [0.9, 0.3], knobs);
  assignAdvantages([right], { advantage: "grpo", advantageScale: "none", advantageEps: 0 });
  expect(right.advantages).toEqual([0.25, -0.25]);
});

test("a likelihood that is no number is an error, not an answer that nobody is confident of", () => {
  const group = fakeGroup([1, 1], "q9", [3, 3]);
  for (const completion of group.completions) completion.ids.set([0, 1, 2]);
  const { trainer, rewards } = configSchema.parse({ model: { path: "m" }, trainer: { care: knobs } });
  const tokenizer = { decode: ([id]: readonly number[]) => ["<answer>", "B", "</answer>"][id as number] as string };
  const give = (logprob: number) =>
    giveBonuses(
      [group],
      [
        [0, -1, 0],
        [0, logprob, 0],
      ],
      { trainer, rewards },
      tokenizer,
    );
  give(-2);
  expect(group.care?.bonuses).toEqual([0.5, 0]);
  expect(() => give(Number.NaN)).toThrow(NumericsError);
  expect(() => give(Number.NaN)).toThrow(/likelihood of the answer of a completion of q9 is NaN/);
});

/** A policy that has begun to answer in tags. */
async function sftModel(): Promise<string> {
  const config = tinyConfig(world, "sft", {
    trainer: { questionsPerStep: 8, steps: 60, saveEvery: 0 },
    optimizer: { learningRate: 1e-2, schedule: "constant" },
  });
  await trainSft(config, { overwrite: true });
  return path.join(config.runDir, "final");
}

const care = (name: string, model: string, more: object = {}, rest: { [section: string]: object } = {}): Config =>
  tinyConfig(world, name, {
    model: { path: model, init: "pretrained" },
    rewards: [{ name: "accuracy" }],
    rollout: { groupSize: 6, maxNewTokens: 24 },
    trainer: {
      ...{ questionsPerStep: 4, steps: 4, saveEvery: 1, keepLast: 9, logCompletions: 9, tokensPerPack: 300 },
      ...{ klCoef: 0, referenceEvery: 2, referenceDecay: 0.5, care: knobs, ...more },
    },
    ...rest,
  });

const completionsOf = ({ runDir }: Config): CompletionRecord[] =>
  readFileSync(path.join(runDir, "completions.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
const metricsOf = ({ runDir }: Config) => readMetrics(path.join(runDir, "metrics.jsonl"));

/** The likelihood of each answer, one completion at a time, each with its prompt; null where its text reads as other tokens than were drawn. */
async function recomputed(config: Config, reference: string, record: CompletionRecord) {
  const model = loadModel(reference, config);
  const pipeline = await openPipeline(config, model, new BadSamples(config.data));
  try {
    const samples = await readTrainingData(config);
    const prompt = await pipeline.loader.load(samples.find(({ id }) => id === record.sample_id) as never);
    const { tokenizer } = pipeline.processor;
    return record.completions.map((text, i) => {
      const ids = Int32Array.from([...tokenizer.encode(text), tokenizer.eosTokenIds[0] as number]);
      const answer = answerTokens(Array.from(ids, (id) => tokenizer.decode([id], { skipSpecialTokens: true })));
      if (ids.length !== record.tokens[i] || answer === null) return null;
      return scope(() => {
        using pass = model.pass(packGroups([{ prompt: prompt as never, completions: [ids] }]), { grad: false });
        const logprobs = pass.logprobs.toNumbers().slice(...answer);
        return Math.min(0.95, Math.exp(logprobs.reduce((sum, one) => sum + one, 0) / logprobs.length));
      });
    });
  } finally {
    await pipeline.close();
    model[Symbol.dispose]();
  }
}

test("confidences are the reference's likelihoods, of the reference as it was then; they decide the bonus; a resumed run is the same bit for bit", async () => {
  const model = await sftModel();
  const config = care("care", model);
  await trainGrpo(config);
  const records = completionsOf(config);
  expect(records).toHaveLength(16);
  let checked = 0;
  for (const record of records) {
    const found = record.care as NonNullable<CompletionRecord["care"]>;
    // Steps 1 and 2 are scored by what the run began with, 3 and 4 by the average after step 2.
    const reference = record.step <= 2 ? model : path.join(config.runDir, "checkpoint-2", "reference");
    for (const [i, likelihood] of (await recomputed(config, reference, record)).entries()) {
      if (likelihood === null) continue;
      expect(found.confidences[i]).toBeCloseTo(likelihood, 5);
      checked++;
    }
    const accuracy = record.reward_breakdown.accuracy as number[];
    expect(found.bonuses).toEqual(careBonuses(accuracy, found.confidences, knobs).bonuses);
    const all = record.rewards.map((reward, i) => reward + (found.bonuses[i] as number));
    const mean = all.reduce((sum, one) => sum + one, 0) / all.length;
    for (const [i, advantage] of record.advantages.entries())
      expect(Math.sign(advantage)).toBe(Math.sign(Math.round(1e9 * ((all[i] as number) - mean))));
  }
  expect(checked).toBeGreaterThan(30);
  expect(records.some(({ care }) => care?.bonuses.some((bonus) => bonus === 0.5))).toBe(true);
  for (const line of metricsOf(config)) {
    expect(line["loss/kl"]).toBe(0);
    expect(line["care/rewarded_share"]).toBeLessThanOrEqual(line["care/right_share"] as number);
    expect(line["care/bonus_mean"]).toBeCloseTo(0.5 * (line["care/rewarded_share"] as number), 12);
  }

  const resumed = care("care-resumed", model);
  cpSync(config.runDir, resumed.runDir, { recursive: true });
  for (const later of ["checkpoint-3", "checkpoint-4", "final"])
    rmSync(path.join(resumed.runDir, later), { recursive: true });
  await trainGrpo(resumed, { resume: true });
  expect(metricsOf(resumed).map(deterministic)).toEqual(metricsOf(config).map(deterministic));
  const bytes = ({ runDir }: Config) => readFileSync(path.join(runDir, "final/model.safetensors"));
  expect(bytes(resumed).equals(bytes(config))).toBe(true);

  // With a KL penalty in the loss, or in the reward, the one pass serves both: the divergence is that of a run without the bonus.
  const first = async (name: string, more: object) => {
    const one = care(name, model, { steps: 1, ...more });
    await trainGrpo(one);
    return metricsOf(one)[0] as Record<string, number>;
  };
  const off = { bonus: 0, margin: 0, cap: 0.95 };
  const kl = { klCoef: 0.04, iterations: 2 };
  expect((await first("both", kl))["loss/kl"]).toBeGreaterThan(0);
  const inReward = { klCoef: 0.04, klIn: "reward", klEstimator: "k1" };
  const [alone, both] = [await first("reward-kl", { ...inReward, care: off }), await first("reward-both", inReward)];
  expect(both["reward/penalty_kl"]).toBe(alone["reward/penalty_kl"]);
  expect(both["care/confidence_mean"]).toBe(metricsOf(config)[0]?.["care/confidence_mean"]);
  expect(alone["care/bonus_mean"]).toBeUndefined();
  // Without the bonus klCoef 0 keeps no reference.
  const plain = await first("plain", { care: off, referenceEvery: 0, referenceDecay: 0 });
  expect(plain["memory/live_tensors"]).toBeLessThan(metricsOf(config)[0]?.["memory/live_tensors"] as number);
}, 300_000);
