/**
 * GRPO for video-language models: the whole step, top to bottom.
 *
 *   q            a question: video, image, text            o_1 .. o_G  its group: completions drawn from the policy
 *   r_i          reward of completion i                    A_i = (r_i - mean(r)) / (std(r) + advantageEps)
 *   rho_t        policy / old policy at token t            d_t = log reference - log policy, clamped to +- klClamp
 *   loss         = sum_t w_t (-min(rho_t A_i, clip(rho_t) A_i) + klCoef (exp(d_t) - d_t - 1)),   w_t: the token's share in the batch
 *   theta        <- AdamW(theta, gradient of the loss, scaled down to norm maxGradNorm)
 *
 * That is the default. trainer.loss and trainer.advantage put others in the place of the two formulas (losses/table.ts, advantage.ts), and groups may be
 * left out, rewards penalised, the reference moved: docs/algorithm.md.
 *
 * Paper: DeepSeekMath arXiv:2402.03300, section 4.1. The recipe is TencentARC/SEED-Bench-R1's; it departs from that code in these points
 * (docs/seed-bench-r1.md has all of them and the reasons):
 *   - a group's prompt is computed once, in rollout, reference and update (trainer.sharedPrefix: false takes the plain path);
 *   - log-probabilities are float32 (there: bfloat16);
 *   - option order, data order and every draw are functions of the seed, so a run can be stopped, resumed and repeated;
 *   - unless compat.hiddenTopK: tokens are drawn from the whole distribution that the loss scores (there: among the 50 likeliest);
 *   - unless compat.unmaskedSecondEos: a completion ends at either end token, and padding never counts (there: behind the second one it does);
 *   - unless compat.firstLetterReward: the answer's letter must stand by itself (there: its first character decides).
 *
 * Launch: npm run grpo -- --config configs/<file>.yaml
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import { needsReference } from "../config/care.ts";
import { isOwn } from "../config/rewards.ts";
import type { Config } from "../config/schema.ts";
import { isVisionFrozen } from "../config/trained-parts.ts";
import { fieldNamesOf } from "../reward/batch.ts";
import type { RewardStep } from "../reward/reward-function.ts";
import { createRewards, type Rewards, startedWith } from "../reward/rewards.ts";
import { rewardMetrics } from "../reward/statistics.ts";
import { synchronize } from "../torch/cuda.ts";
import { clone } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { fromArray, type Tensor } from "../torch/tensor.ts";
import type { Completion, Metrics, Prompt, RolloutGroup } from "../types.ts";
import { assignAdvantages, uniformMetrics } from "./advantage.ts";
import { deviceOf } from "./assemble.ts";
import { packBatch, type TrainPack, unmaskSecondEos } from "./batch.ts";
import { careMetrics, giveBonuses } from "./care.ts";
import { dropoutWords } from "./dropout.ts";
import { drawGroups, filterMetrics, isKept } from "./dynamic-sampling.ts";
import { questionsRecur } from "./feature-sources.ts";
import { lossMetrics, policyLoss, readTogether } from "./loss.ts";
import { firstNonFinite, pickMetrics, rolloutMetrics, StopWatch } from "./metrics.ts";
import { isReferenceDue } from "./moving-reference.ts";
import { penaltyMetrics, punishDistance, punishLength } from "./penalties.ts";
import { RecomputePlanner } from "./recompute-planner.ts";
import type { Reference } from "./reference.ts";
import { openResidentReference } from "./resident-reference.ts";
import { learningRate } from "./schedule.ts";
import {
  closeSession,
  loadPrompts,
  memoryMetrics,
  openSession,
  refuseBatch,
  type Session,
  trainSession,
} from "./session.ts";
import { openShardedReference } from "./sharded-reference.ts";
import { countsInLoss } from "./token-weights.ts";
import { rateMetrics } from "./trained.ts";
import type { TrainHooks, TrainResult } from "./training-loop.ts";
import type { VisionFeatures } from "./vision-features.ts";
import { gatherGroups, imbalanceMetrics } from "./whole-batch.ts";

interface GrpoRun extends Session {
  rewards: Rewards;
  recordFields: string[]; // names that rewards get a column for
  ownRewards: string[]; // names of the user's own functions
  planner: RecomputePlanner;
  reference: Reference | null; // null where nothing asks it
}

/** One step: from the questions that (seed, step) names to the updated policy. */
async function grpoStep(run: GrpoRun, step: number): Promise<Metrics> {
  const { trainer } = run.config;
  const watch = new StopWatch(synchronize);

  const questions = await watch.time("data", () => loadPrompts(run, step)); // P questions, this rank's
  if (questions.total === 0) {
    moveReferenceInTurn(run, step);
    return { "data/questions": 0, "data/bad_samples": run.badSamples };
  }
  const sampler = { prefillS: 0, decodeS: 0 };
  const drawn = await drawGroups(run, step, questions, async (prompts) => {
    for (const features of featuresOf(run)) features.know(prompts);
    const groups = await watch.time("rollout", () => rollout(run, prompts, step, sampler)); // RolloutGroup[P], G completions each
    await watch.time("reward", () => run.rewards.score(groups, rewardStep(run, step), run.recordFields)); // text in, numbers out
    return groups;
  });
  const groups = drawn.groups.filter((group) => isKept(group, trainer));
  punishLength(groups, run.config);
  const early = rewardsNeedReference(trainer)
    ? await watch.time("reference", () => askReferenceFirst(run, groups))
    : null;

  const { batch: asked, own, rankOf } = gatherGroups(run.ranks, drawn.places, drawn.groups); // of all ranks, the same everywhere
  const batch = asked.filter((group) => isKept(group, trainer));
  assignAdvantages(batch, trainer);
  for (const [i, group] of drawn.groups.entries()) group.advantages = own[i]?.advantages ?? [];

  const counts = (completion: Completion) => countsInLoss(completion, trainer);
  const learns = batch.some(({ completions }) => completions.some(counts)); // else there is nothing to update from
  const packs = learns ? packBatch(asScored(run, groups), trainer, asScored(run, batch)) : [];
  const references = early ?? (await watch.time("reference", () => referencesOfLoss(run, packs))); // [Tc] per pack
  const oldLogprobs: Tensor[] = []; // [Tc] per pack, filled by the first update
  let update: Metrics = {};
  try {
    for (let iteration = 0; learns && iteration < trainer.iterations; iteration++) {
      const latest = await watch.time("update", () => updatePolicy(run, step, groups, packs, references, oldLogprobs));
      // How far sampler and trainer are apart is a question about one policy: it is answered before the first update.
      update = { ...latest, ...(iteration === 0 ? {} : pickMetrics(update, "rollout/logprob_gap")) };
    }
  } finally {
    for (const tensor of [...references, ...oldLogprobs]) tensor?.free();
    if (!questionsRecur(run)) for (const features of featuresOf(run)) features.clear();
  }

  moveReferenceInTurn(run, step);
  run.folder.writeCompletions(step + 1, asked.slice(0, trainer.logCompletions));
  return {
    ...rewardMetrics(asked, run.ownRewards),
    ...uniformMetrics(asked),
    ...penaltyMetrics(batch),
    ...careMetrics(batch),
    ...update,
    ...rolloutMetrics(asked, watch.seconds("rollout")),
    "rollout/occupancy": run.sampler.stats.occupancy, // share of the decode steps' rows that gave a token
    "data/questions": asked.length,
    ...filterMetrics(asked, drawn.rounds, trainer),
    ...imbalanceMetrics(run.ranks, batch, rankOf),
    "data/bad_samples": run.badSamples,
    ...watch.metrics(),
    "time/prefill_s": sampler.prefillS, // parts of time/rollout_s
    "time/decode_s": sampler.decodeS,
    ...memoryMetrics(run.model.device),
  };
}

/** Every trainer.referenceEvery steps, whatever a step had to learn from. */
function moveReferenceInTurn({ config, model, reference, checkpoints }: GrpoRun, step: number): void {
  if (!isReferenceDue(step + 1, config.trainer)) return;
  checkpoints.beforeUpdate();
  reference?.move(model.parameters, { decay: config.trainer.referenceDecay, seed: config.seed, step });
}

/** How far the run is, for reward functions that change with it. */
function rewardStep({ config, steps, samples }: GrpoRun, step: number): RewardStep {
  const perEpoch = samples.length / config.trainer.questionsPerStep; // steps
  return { step, steps, epoch: step / perEpoch, epochs: Math.ceil(steps / perEpoch) };
}

function featuresOf({ features, reference }: GrpoRun): Set<VisionFeatures> {
  return new Set([features, reference?.features ?? null].filter((some) => some !== null));
}

/** G completions of each prompt, drawn from the policy as it is now. Adds what it took to `spent`. */
function rollout(
  run: GrpoRun,
  prompts: Prompt[],
  step: number,
  spent: { prefillS: number; decodeS: number },
): RolloutGroup[] {
  if (prompts.length === 0) return []; // more ranks than questions
  const { groupSize, maxNewTokens, temperature, topK, topP } = run.config.rollout;
  const keys = { seed: run.config.seed, step };
  const groups = run.sampler.rolloutGroups(prompts, { groupSize, maxNewTokens, temperature, topK, topP, ...keys });
  spent.prefillS += run.sampler.stats.prefillS;
  spent.decodeS += run.sampler.stats.decodeS;
  return groups;
}

/** The completions as the loss counts them: as they were drawn, or with what the seed's mask leaves open. */
function asScored({ config, model, processor }: GrpoRun, groups: RolloutGroup[]): RolloutGroup[] {
  if (!config.compat.unmaskedSecondEos) return groups;
  const { eosTokenIds } = model.config;
  const ends = eosTokenIds.length > 0 ? eosTokenIds : processor.tokenizer.eosTokenIds;
  return unmaskSecondEos(groups, { first: ends[0] as number, pad: processor.tokenizer.padTokenId });
}

/** The reference's log-probabilities for a KL penalty in the loss: float32 [Tc] per pack. */
async function referencesOfLoss(
  { config, reference }: GrpoRun,
  packs: readonly TrainPack[],
): Promise<(Tensor | null)[]> {
  const { klCoef, klIn } = config.trainer;
  if (reference === null || klCoef === 0 || klIn !== "loss") return packs.map(() => null);
  return reference.logprobs(packs.map(({ packed }) => packed));
}

function rewardsNeedReference({ klCoef, klIn, care }: Config["trainer"]): boolean {
  return (klIn === "reward" && klCoef > 0) || care.bonus > 0;
}

/**
 * Before there are advantages: the distance from the reference as a penalty of each completion, and the bonus of its confidence in the answer. Returns
 * what referencesOfLoss() would compute again for the same packs; null where the loss needs nothing of it.
 */
async function askReferenceFirst(run: GrpoRun, groups: RolloutGroup[]): Promise<(Tensor | null)[] | null> {
  const { trainer } = run.config;
  const scored = asScored(run, groups);
  const packs = packBatch(
    scored.map((group) => ({ ...group, advantages: group.rewards.map(() => 0) })),
    trainer,
  );
  const logprobs = (await run.reference?.logprobs(packs.map(({ packed }) => packed))) ?? [];
  const all = logprobs.length === 0 ? [] : readTogether(logprobs).flat();
  if (trainer.klIn === "reward" && trainer.klCoef > 0) punishDistance(groups, all, trainer);
  if (trainer.care.bonus > 0) giveBonuses(groups, splitBy(all, scored), run.config, run.processor.tokenizer);
  if (trainer.klIn === "loss" && trainer.klCoef > 0) return logprobs;
  for (const tensor of logprobs) tensor.free();
  return null;
}

/** Values of all tokens of the groups, in order, by completion. */
function splitBy(values: readonly number[], groups: readonly RolloutGroup[]): number[][] {
  let end = 0;
  return groups.flatMap(({ completions }) =>
    completions.map(({ ids }) => {
      end += ids.length;
      return values.slice(end - ids.length, end);
    }),
  );
}

/**
 * One update from the whole batch: gradients pack by pack, summed over the ranks, one global norm, one optimizer step. The first update from a batch fills
 * `oldLogprobs` where later ones will measure their ratio against them.
 * @throws NumericsError before the weights are touched when a loss or the gradient is not finite; the batch is in the run folder then.
 */
async function updatePolicy(
  run: GrpoRun,
  step: number,
  groups: readonly RolloutGroup[],
  packs: readonly TrainPack[],
  references: readonly (Tensor | null)[],
  oldLogprobs: Tensor[],
): Promise<Metrics> {
  const { config, model, optimizer } = run;
  const device = deviceOf(config);
  const freezeVision = isVisionFrozen(config);
  const keepOld = config.trainer.iterations > 1 && oldLogprobs.length === 0;
  const stats: Tensor[] = []; // [7] per pack, see LOSS_STATS
  optimizer.zeroGrad(packs.length);
  try {
    for (const [i, pack] of packs.entries()) {
      scope(() => {
        const perToken = (values: Float32Array) => fromArray(values, [values.length], { device }); // [Tc]
        const visionCache = run.features?.ofPack(pack.packed); // of the rollout
        const recompute = run.planner.for(pack.packed);
        const dropout = dropoutWords(config, step, pack.packed, pack);
        using pass = model.pass(pack.packed, { grad: true, recompute, freezeVision, visionCache, dropout });
        const loss = policyLoss(
          {
            logprobs: pass.logprobs,
            entropy: pass.entropy,
            oldLogprobs: oldLogprobs[i] ?? null,
            referenceLogprobs: references[i] ?? null,
            samplerLogprobs: perToken(pack.samplerLogprobs),
            advantages: perToken(pack.advantages),
            weights: perToken(pack.weights),
            lengths: pack.lengths,
          },
          config.trainer,
        );
        optimizer.backward((watch) => pass.backward(loss.gradient, loss.entropyGradient, watch));
        stats.push(keep(loss.stats));
        if (keepOld) oldLogprobs.push(keep(clone(pass.logprobs)));
      });
      await nextTurn();
    }
    const rate = learningRate(config.optimizer, optimizer.updates, run.steps * config.trainer.iterations);
    optimizer.sumGradients();
    stats.push(keep(optimizer.gradNorm()));
    const values = readTogether(stats); // the one wait for the device in an update
    const metrics = {
      ...lossMetrics(run.ranks.gather(values.slice(0, -1)).flat(), config.trainer),
      "grad/norm": values.at(-1)?.[0] as number,
    };
    const bad = firstNonFinite(metrics);
    if (bad !== undefined) {
      const batch = groups.map((group) => ({ ...group, completions: group.completions.map(({ ids }) => ids) }));
      throw refuseBatch(run, step + 1, bad, batch, values);
    }
    run.checkpoints.beforeUpdate();
    optimizer.step(rate, stats.at(-1) as Tensor);
    return { ...metrics, ...rateMetrics(config, rate) };
  } finally {
    for (const tensor of stats) tensor.free();
  }
}

/** Trains the policy that `config` describes. Returns after the last step, or after a signal once the step in progress is saved. */
export async function trainGrpo(config: Config, hooks: TrainHooks = {}): Promise<TrainResult> {
  const rewards = createRewards(config.rewards, { firstLetter: config.compat.firstLetterReward }); // first: a wrong name must not leave a run folder behind
  const session = await startedWith(rewards, () => openSession(config, hooks, "grpo")); // what is wrong with them costs no weights
  const planner = new RecomputePlanner(config, session.model.config);
  const recordFields = fieldNamesOf(session.samples);
  const ownRewards = config.rewards.filter(isOwn).map(({ name }) => name);
  const run: GrpoRun = Object.assign(session, { rewards, recordFields, ownRewards, planner, reference: null });
  try {
    if (needsReference(config.trainer)) {
      const isSharded = config.distributed.shardReference && run.ranks.world > 1;
      const reference = isSharded ? openShardedReference(session) : openResidentReference(session);
      run.reference = reference;
      if (config.trainer.referenceEvery > 0) run.moreFiles = () => reference.files();
    }
    return await trainSession(run, hooks, (step) => grpoStep(run, step));
  } finally {
    await rewards.close();
    run.reference?.[Symbol.dispose]();
    await closeSession(session);
  }
}
