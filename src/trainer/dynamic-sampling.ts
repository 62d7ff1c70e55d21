/**
 * The groups that a step learns from. With trainer.filterUniform those whose rewards are all alike are left out and, for trainer.resampleRounds
 * rounds, other questions asked in their place. Paper: DAPO arXiv:2503.14476 eq. 11 ("dynamic sampling"). Rewards are those of the reward
 * functions: what penalties make of them does not keep a group whose answers are all right or all wrong.
 */

import type { Config } from "../config/schema.ts";
import { otherIndices, sampleIndices } from "../data/order.ts";
import type { Metrics, Prompt, RolloutGroup, Sample } from "../types.ts";
import { isUniform } from "./advantages/baseline.ts";
import { loadShare, type Session } from "./session.ts";
import type { StepPrompts } from "./whole-batch.ts";

/** Whether a group is part of the loss. */
export function isKept(group: Pick<RolloutGroup, "rewards">, { filterUniform }: Config["trainer"]): boolean {
  return !(filterUniform && isUniform(group.rewards));
}

/** What was asked in a step, by this rank. */
export interface Drawn {
  groups: RolloutGroup[]; // kept or not
  places: number[]; // of each in the step's list and, behind it, those of the rounds
  rounds: number; // in which other questions were asked
}

/**
 * Draws the groups of a step's questions and, while groups are missing, of others: a function of (seed, step, round) and of what was asked so far,
 * whatever the number of ranks. No question is asked twice, so each has draws of its own.
 * @param draw from prompts to groups with rewards; all ranks call it at the same time, some perhaps with no prompt
 */
export async function drawGroups(
  session: Session,
  step: number,
  first: StepPrompts,
  draw: (prompts: Prompt[]) => Promise<RolloutGroup[]>,
): Promise<Drawn> {
  const { config, samples, ranks } = session;
  const { questionsPerStep, resampleRounds } = config.trainer;
  const drawn: Drawn = { groups: await draw(first.prompts), places: [...first.places], rounds: 0 };
  const asked = new Set(resampleRounds > 0 ? sampleIndices(samples.length, step, questionsPerStep, config.seed) : []);
  for (let round = 1; round <= resampleRounds; round++) {
    const kept = ranks.sum(drawn.groups.filter((group) => isKept(group, config.trainer)).length);
    const indices = otherIndices(samples.length, first.total - kept, asked, config.seed, "resample", step, round);
    if (indices.length === 0) break;
    for (const index of indices) asked.add(index);
    const others = await session.shares.of(indices.map((index) => samples[index] as Sample));
    const share = others.map(({ place, sample }) => ({ place: round * questionsPerStep + place, sample }));
    const { prompts, places } = await loadShare(session, step, share);
    drawn.groups.push(...(await draw(prompts)));
    drawn.places.push(...places);
    drawn.rounds = round;
  }
  return drawn;
}

/** Of the groups of all ranks, where groups may be left out. */
export function filterMetrics(groups: readonly RolloutGroup[], rounds: number, trainer: Config["trainer"]): Metrics {
  if (!trainer.filterUniform) return {};
  const leftOut = groups.filter((group) => !isKept(group, trainer)).length;
  return { "data/left_out": leftOut, "data/resample_rounds": rounds };
}
