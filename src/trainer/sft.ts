/**
 * Supervised fine-tuning on responses with a chain of thought: the stage before GRPO, with the same shape of a step.
 *
 *   loss    = -1/T sum_t log policy(y_t | question, y_<t),   T: response tokens of all records of the step
 *   theta   <- AdamW(theta, gradient of the loss, scaled down to norm maxGradNorm)
 *
 * Only the response counts: its tokens, the `<|im_end|>` behind them and the line break of the chat template, as in TencentARC/SEED-Bench-R1
 * (labels are masked up to the last `<|im_start|>assistant\n`). It departs from that code in two points: records are packed without padding,
 * and the mean is one over all tokens of a step, not over the means of micro-batches.
 *
 * Launch: npm run sft -- --config configs/<file>.yaml
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { Config } from "../config/schema.ts";
import { isVisionFrozen } from "../config/trained-parts.ts";
import { responseOf } from "../data/chat.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { packGroups } from "../model/packed.ts";
import { synchronize } from "../torch/cuda.ts";
import { full, stack, sum } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { Metrics, Prompt, Sample } from "../types.ts";
import { splitByTokens } from "./batch.ts";
import { dropoutWords, type PackMembers } from "./dropout.ts";
import { questionsRecur } from "./feature-sources.ts";
import { readTogether } from "./loss.ts";
import { firstNonFinite, StopWatch } from "./metrics.ts";
import { imbalance } from "./question-shares.ts";
import { RecomputePlanner } from "./recompute-planner.ts";
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
import { rateMetrics } from "./trained.ts";
import type { TrainHooks, TrainResult } from "./training-loop.ts";

interface SftRun extends Session {
  planner: RecomputePlanner;
}

interface SftRecord {
  prompt: Prompt;
  completions: [response: Int32Array]; // ids, see responseIds
}

/** One step: from the records that (seed, step) names to the updated policy. */
async function sftStep(run: SftRun, step: number): Promise<Metrics> {
  const watch = new StopWatch(synchronize);
  const { prompts, total } = await watch.time("data", () => loadPrompts(run, step)); // P records, this rank's
  if (total === 0) return { "data/records": 0, "data/bad_samples": run.badSamples };
  if (questionsRecur(run)) run.features?.know(prompts);

  const records = prompts.map((prompt): SftRecord => {
    return { prompt, completions: [responseIds(prompt.sample, run.processor.tokenizer)] };
  });
  const packs = splitByTokens(records, recordTokens, run.config.trainer.tokensPerPack);
  const tokens = run.ranks.sum(records.reduce((sum, { completions }) => sum + completions[0].length, 0)); // T, of all ranks
  const update = await watch.time("update", () => updatePolicy(run, step, packs, tokens));
  const tokensByRank = run.ranks.gather(records.reduce((sum, record) => sum + recordTokens(record), 0));
  return {
    ...update,
    "data/records": total,
    "data/response_tokens": tokens,
    "data/bad_samples": run.badSamples,
    ...(run.ranks.world > 1 && { "data/token_imbalance": imbalance(tokensByRank) }),
    "data/tokens_per_s": tokensByRank.reduce((sum, own) => sum + own, 0) / watch.seconds("update"),
    ...watch.metrics(),
    ...memoryMetrics(run.model.device),
  };
}

/**
 * What the policy is to say: the response, the end of the turn, and the line break that the chat template puts behind it.
 * @throws DataError for a record without a response.
 */
export function responseIds(sample: Sample, tokenizer: Pick<Tokenizer, "encode" | "idOf">): Int32Array {
  return Int32Array.from([
    ...tokenizer.encode(responseOf(sample)),
    tokenizer.idOf("<|im_end|>"),
    ...tokenizer.encode("\n"),
  ]);
}

/**
 * One update from the whole batch: gradients pack by pack, summed over the ranks, one global norm, one optimizer step.
 * @throws NumericsError before the weights are touched when the loss or the gradient is not finite.
 */
async function updatePolicy(
  run: SftRun,
  step: number,
  packs: readonly SftRecord[][],
  tokens: number,
): Promise<Metrics> {
  const { config, model, optimizer } = run;
  const freezeVision = isVisionFrozen(config);
  const stats: Tensor[] = []; // per pack: sums of -log p and of the entropy
  optimizer.zeroGrad(packs.length);
  try {
    for (const groups of packs) {
      scope(() => {
        const packed = packGroups(groups);
        const visionCache = run.features?.ofPack(packed);
        const recompute = run.planner.for(packed);
        const dropout = dropoutWords(config, step, packed, membersOf(groups));
        using pass = model.pass(packed, { grad: true, recompute, freezeVision, visionCache, dropout });
        stats.push(keep(stack([sum(pass.logprobs), sum(pass.entropy)])));
        const gradient = full(pass.logprobs.shape, -1 / tokens, { device: model.device }); // d loss / d logprob
        optimizer.backward((watch) => pass.backward(gradient, null, watch));
      });
      await nextTurn(); // lets signals, prefetching and logs have their turn
    }
    const rate = learningRate(config.optimizer, optimizer.updates, run.steps);
    optimizer.sumGradients();
    stats.push(keep(optimizer.gradNorm()));
    const values = readTogether(stats); // the one wait for the device in a step
    const packStats = run.ranks.gather(values.slice(0, -1)).flat();
    const mean = (column: number) => packStats.reduce((sum, pack) => sum + (pack[column] as number), 0) / tokens;
    const metrics = { "loss/sft": -mean(0), "loss/entropy": mean(1), "grad/norm": values.at(-1)?.[0] as number };
    const bad = firstNonFinite(metrics);
    if (bad !== undefined) throw refuseBatch(run, step + 1, bad, packs.flat(), values);
    run.checkpoints.beforeUpdate();
    optimizer.step(rate, stats.at(-1) as Tensor);
    return { ...metrics, ...rateMetrics(config, rate) };
  } finally {
    for (const tensor of stats) tensor.free();
  }
}

/** Trains the policy that `config` describes. Returns after the last step, or after a signal once the step in progress is saved. */
export async function trainSft(config: Config, hooks: TrainHooks = {}): Promise<TrainResult> {
  const session = await openSession(config, hooks, "sft");
  const run: SftRun = Object.assign(session, { planner: new RecomputePlanner(config, session.model.config) });
  try {
    return await trainSession(session, hooks, (step) => sftStep(run, step));
  } finally {
    await closeSession(session);
  }
}

function membersOf(records: readonly SftRecord[]): PackMembers {
  return { sampleIds: records.map(({ prompt }) => prompt.sample.id), completionIndices: records.map(() => [0]) };
}

function recordTokens({ prompt, completions }: SftRecord): number {
  return completions.reduce((total, ids) => total + ids.length, prompt.inputIds.length);
}
