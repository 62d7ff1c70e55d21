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
  if (places === 0) throw new ConfigError(`gpusPerRun is ${gpusPerRun}, but ${gpus.length} GPUs are visible`);
  const count = parallel ?? places;
  return Array.from({ length: count }, (_, i) => {
    const first = (i % places) * gpusPerRun;
    return { env: { CUDA_VISIBLE_DEVICES: gpus.slice(first, first + gpusPerRun).join(",") }, set: shared(count) };
  });
}

/** The GPUs that this process may use. */
export async function visibleGpus(
  { device }: Pick<Config, "device">,
  env: Readonly<Record<string, string | undefined>>,
): Promise<string[]> {
  if (device !== "cuda") return [];
  const listed = env.CUDA_VISIBLE_DEVICES?.split(",").filter((name) => name.trim() !== "");
  if (listed !== undefined) return listed;
  const { deviceCount } = await import("../torch/cuda.ts"); // only now: sweeps on the CPU need no libtorch
  return Array.from({ length: deviceCount() }, (_, index) => String(index));
}
