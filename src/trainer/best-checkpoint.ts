/**
 * Which complete checkpoints of a run stay: the newest, and the best by a metric that their manifests hold. Knows no tensor, like
 * checkpoint-folder.ts, whose thread asks.
 */

import { lstatSync, rmSync } from "node:fs";
import path from "node:path";
import type { BestRule } from "../config/best-checkpoints.ts";
import { CheckpointError } from "../errors.ts";
import { replaceLink } from "./files.ts";

/** In the run folder: a link to the best checkpoint that is kept. */
export const BEST_LINK = "best";

/** How good a checkpoint is. */
export interface CheckpointMetric {
  name: string;
  value: number; // finite
}

/** A complete checkpoint as its manifest tells of it. */
export interface RatedCheckpoint {
  step: number;
  folder: string;
  metric?: CheckpointMetric;
}

/** What a manifest says of a checkpoint; undefined where there is no number to compare by. */
export function metricOf(rule: Pick<BestRule, "metric">, value: number | undefined): CheckpointMetric | undefined {
  return value !== undefined && Number.isFinite(value) ? { name: rule.metric, value } : undefined;
}

/** The `count` best of them by the rule's metric, the best one first, of equal ones the newer; those without that metric are none. */
export function bestOf<T extends RatedCheckpoint>(checkpoints: readonly T[], { count, metric, goal }: BestRule): T[] {
  const sign = goal === "maximize" ? 1 : -1;
  const merit = (one: T) => sign * (one.metric as CheckpointMetric).value;
  return checkpoints
    .filter((one) => one.metric?.name === metric)
    .sort((a, b) => merit(b) - merit(a) || b.step - a.step)
    .slice(0, count);
}

/**
 * Lets `best` point to a checkpoint of the run, or be gone where there is none.
 * @throws CheckpointError when something else has that name
 */
export function pointToBest(runDir: string, checkpoint: RatedCheckpoint | undefined): void {
  const link = path.join(runDir, BEST_LINK);
  const present = lstatSync(link, { throwIfNoEntry: false });
  const isOurs = present === undefined || present.isSymbolicLink();
  if (checkpoint !== undefined) {
    if (!isOurs) throw new CheckpointError(link, "is no link: move what is where the link to the best checkpoint goes");
    replaceLink(link, path.basename(checkpoint.folder));
  } else if (present?.isSymbolicLink()) rmSync(link);
}
