/** Where runs of an experiment go that are made at the same time: GPUs of their own, or a share of the CPU's threads. */

import type { Config } from "../config/schema.ts";
import { ConfigError } from "../errors.ts";

/** What a run is started with to stay in its place. */
export interface Slot {
  /** Environment variables. */
  env: Record<string, string>;
  /** Knobs, as --set takes them. */
  set: string[];
}

/**
 * On cuda each slot has `gpusPerRun` GPUs; where more slots are asked for than that gives, they take turns on them (a small policy leaves most
 * of a GPU idle). A config that names one GPU, cuda:N, keeps it. Threads that the config leaves open are shared out.
 * @param gpus the visible GPUs, as CUDA_VISIBLE_DEVICES names them
 * @throws ConfigError where there are fewer GPUs than a run wants
 */
export function slotsFor(
  { device, threads }: Pick<Config, "device" | "threads">,
  { parallel, gpusPerRun }: { parallel?: number | undefined; gpusPerRun: number },
  gpus: readonly string[],
  cores: number,
): Slot[] {
  const shared = (count: number) => {
    const share = Math.max(1, Math.floor(cores / count));
    return threads === 0 && count > 1 ? [`threads=${share}`] : [];
  };
  if (device !== "cuda") {
    const count = parallel ?? 1;
    return Array.from({ length: count }, () => ({ env: {}, set: shared(count) }));
  }
  const places = Math.floor(gpus.length / gpusPerRun);
  if (places === 0)
    throw new ConfigError(
      `gpusPerRun is ${gpusPerRun}, but ${gpus.length} GPUs are visible: start it where there are as many, or set device to cpu`,
    );
  const count = parallel ?? places;
  return Array.from({ length: count }, (_, i) => {
    const first = (i % places) * gpusPerRun;
    return { env: { CUDA_VISIBLE_DEVICES: gpus.slice(first, first + gpusPerRun).join(",") }, set: shared(count) };
  });
}

/** The same for a plan: what this machine lacks is said, so that an experiment can be planned on any machine. */
export function plannedPlaces(
  { device }: Pick<Config, "device">,
  { parallel, gpusPerRun }: { parallel?: number | undefined; gpusPerRun: number },
  gpus: number,
): { atATime: string; notes: string[] } {
  if (device !== "cuda") return { atATime: `${parallel ?? 1} at a time`, notes: [] };
  const places = Math.floor(gpus / gpusPerRun);
  const each = `GPUs: ${gpusPerRun} for each run (gpusPerRun), ${gpus} visible here`;
  if (places > 0) return { atATime: `${parallel ?? places} at a time`, notes: [each] };
  return {
    atATime: parallel === undefined ? "as many at a time as there are GPUs for" : `${parallel} at a time`,
    notes: [`${each}: without --dry-run it is refused on this machine`],
  };
}

/** The GPUs that this process may use. */
export async function visibleGpus(
  { device }: Pick<Config, "device">,
  env: Readonly<Record<string, string | undefined>>,
): Promise<string[]> {
  if (device !== "cuda") return [];
  const listed = env.CUDA_VISIBLE_DEVICES?.split(",").map((name) => name.trim());
  if (listed !== undefined) {
    const none = listed.findIndex((name) => name === "" || name.startsWith("-")); // as -1, which hides what follows, too
    return none < 0 ? listed : listed.slice(0, none);
  }
  const { deviceCount } = await import("../torch/cuda.ts"); // only now: sweeps on the CPU need no libtorch
  return Array.from({ length: deviceCount() }, (_, index) => String(index));
}
