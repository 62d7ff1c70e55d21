/** On what a command's plan is made: how many ranks, on GPUs of how much memory; and the refusal of a run that these cannot hold. */

import { totalmem } from "node:os";
import type { Config } from "../config/schema.ts";
import { LAUNCHER, starterOf } from "../distributed/starter.ts";
import type { Stage } from "../trainer/plan.ts";
import type { PlanDevice } from "../trainer/plan-text.ts";
import { visibleGpus } from "./gpus.ts";
import { plannedRanks } from "./ranks.ts";

const GIB = 2 ** 30;

/** What a plan is made for, beside the config. */
export interface PlanPlace {
  nproc?: number | undefined;
  deviceMemory?: number | undefined; // GiB
}

/** @throws ConfigError where --nproc does not fit */
export function planDevice(stage: Stage, config: Config, { nproc, deviceMemory }: PlanPlace): PlanDevice {
  const eachGpu = { ranks: 1, here: Number.POSITIVE_INFINITY, from: "each process" };
  const { ranks, here, from } = stage === "eval" ? eachGpu : plannedRanks(config, nproc);
  if (deviceMemory !== undefined) return { ranks, from, bytes: deviceMemory * GIB, of: "--device-memory" };
  return { ranks, from, ...memoryHere(config, here) };
}

/**
 * Of the smallest GPU that one of this machine's `ranks` would have; null where there is none. GPUs that are not alike count from the largest on: which
 * of them CUDA numbers first is its own choice.
 */
function memoryHere({ device }: Config, ranks: number): { bytes: number | null; of: string } {
  if (device === "cpu") return hostMemory(ranks);
  const gpus = visibleGpus();
  const index = /^cuda:(\d+)$/.exec(device)?.[1];
  const sizes = gpus.map(({ bytes }) => bytes);
  const used =
    index === undefined ? sizes.sort((a, b) => b - a).slice(0, ranks) : sizes.slice(Number(index), Number(index) + 1);
  return { bytes: used.length === 0 ? null : Math.min(...used), of: "this machine" };
}

function hostMemory(ranks: number): { bytes: number; of: string } {
  const sharing = Number.isFinite(ranks) ? ranks : 1;
  const bytes = totalmem() / sharing;
  return { bytes, of: sharing === 1 ? "this machine" : `of this machine's, for each of ${sharing} ranks` };
}

/**
 * At the start of a run, from the records and the knobs alone: no media are decoded. Ranks that our launcher has started need not ask again.
 * @throws MemoryError
 */
export async function refuseWhatCannotFit(stage: Stage, config: Config, flags: PlanPlace): Promise<void> {
  if (config.device === "cpu" || starterOf(LAUNCHER) !== undefined) return;
  const at = planDevice(stage, config, flags);
  if (at.bytes === null) return;
  const { makePlan } = await import("../trainer/plan-text.ts");
  const { refusal } = await makePlan(stage, config, at, { decode: false });
  if (refusal !== null) throw refusal;
}
