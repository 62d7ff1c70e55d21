/** How a command becomes the ranks of a job: whether it starts them, is one of them, or is alone. */

import { availableParallelism } from "node:os";
import path from "node:path";
import type { Config } from "../config/schema.ts";
import type { Place } from "../distributed/environment.ts";
import { type Launch, launchWithRestarts, type RankReport } from "../distributed/launcher.ts";
import type { Ranks } from "../distributed/ranks.ts";
import { LAUNCHER, ownPlace, starterOf } from "../distributed/starter.ts";
import { ConfigError } from "../errors.ts";
import { log } from "../log.ts";
import { visibleGpus } from "./gpus.ts";
import { renderError } from "./render-error.ts";

/** A rank of a job, or a run that is alone. */
export interface RankRun {
  ranks: Ranks;
  /** With what is different from rank to rank: the device, and this rank's share of the processors. */
  config: Config;
  /** Tells who started the rank how far it is. */
  report: (report: RankReport) => void;
  /** Tells the other ranks that this one fails, so that they end before it has closed what it has open. */
  fail: (error: unknown) => void;
}

export interface RankFlags {
  /** Ranks on this machine; default: on cuda a GPU each, as far as there are questions for them. */
  nproc?: number | undefined;
  /** How often ranks that have failed are started again, from the newest checkpoint. */
  maxRestarts?: number | undefined;
}

/**
 * Runs `work` as the rank that this process is, or starts the ranks that are wanted here and returns when they have ended.
 * @throws RankError where a rank that was started here fails; ConfigError where nproc does not fit
 */
export async function asRanks(
  config: Config,
  { nproc, maxRestarts = 0 }: RankFlags,
  work: (run: RankRun) => Promise<void>,
): Promise<void> {
  const place = ownPlace();
  const launcher = starterOf(LAUNCHER);
  const isOnlyRank = place === null && launcher !== undefined; // a world of one is no job, and has to start none either
  if (!isOnlyRank && (place === null || isPod(place, nproc))) {
    const count = nproc ?? (await defaultCount(config));
    checkCount(config, count * (place?.world ?? 1), nproc);
    if (count > 1 || maxRestarts > 0) {
      // Machines of a job cannot be started again one by one: what has started them all can.
      if (place !== null && maxRestarts > 0)
        throw new ConfigError("--max-restarts: in a job of several machines restarting is for whoever starts the pods");
      log.info({ ranks: count, logs: path.join(config.runDir, "ranks") }, "starting the ranks");
      const launch = launchOf(config, count, place);
      return launchWithRestarts(launch, { ...launch, args: resuming(launch.args) }, maxRestarts);
    }
  } else if (nproc !== undefined && place !== null && place.startedBy !== "grove --nproc")
    throw new ConfigError(`--nproc ${nproc}: ${place.startedBy} has started ${place.world} ranks already`);
  const { ALONE, joinRanks } = await import("../distributed/ranks.ts"); // only now: a launcher on the CPU needs no libtorch
  const { watchedProgress } = await import("./watched-progress.ts");
  const { endWithParent } = await import("../torch/distributed.ts");
  if (launcher !== undefined && (place === null || place.startedBy === "grove --nproc")) endWithParent(launcher);
  const report = (report: RankReport) => void process.send?.(report);
  if (place === null) {
    using _watch = watchedProgress(config, { who: "", log: path.join(config.runDir, "log.jsonl") });
    return await work({ ranks: ALONE, config, report: isOnlyRank ? report : () => {}, fail: () => {} });
  }
  const { deviceCount, setDevice } = await import("../torch/cuda.ts");
  const own = configOfRank(config, place, deviceCount());
  const index = /^cuda:(\d+)$/.exec(own.device)?.[1];
  if (index !== undefined) setDevice(Number(index));
  const nccl = own.device !== "cpu";
  const { timeoutS, heartbeatS, stallS } = config.distributed;
  const limits = { timeoutMs: timeoutS * 1000, heartbeatMs: heartbeatS * 1000, stallMs: stallS * 1000 };
  const ranks = joinRanks(place, { nccl, ...limits, log: logOf(config, place) });
  const fail = (error: unknown) => ranks.fail(renderError(error));
  using _watch = watchedProgress(own, { who: `rank ${place.rank} of ${place.world}`, log: logOf(config, place) });
  try {
    await work({ ranks, config: own, report, fail });
  } catch (error) {
    fail(error);
    throw error;
  }
  await ranks.leave();
}

/** What a rank leaves to read: all that it prints where our launcher keeps it, else its own log. */
function logOf({ runDir }: Config, { rank, startedBy }: Place): string {
  if (startedBy === "grove --nproc") return path.join(runDir, "ranks", `rank-${rank}.log`);
  return rank === 0 ? path.join(runDir, "log.jsonl") : path.join(runDir, "ranks", `rank-${rank}.jsonl`);
}

/** How many ranks a job has that a command begins or belongs to, and who says so. */
export interface RankCount {
  ranks: number;
  /** Of them on this machine. */
  here: number;
  from: string;
}

/**
 * As asRanks decides, for a plan: without libtorch, so that GPUs are counted as the driver's tool sees them.
 * @throws ConfigError where nproc does not fit
 */
export function plannedRanks(config: Config, nproc?: number): RankCount {
  const place = ownPlace();
  if (place !== null && !isPod(place, nproc))
    return { ranks: place.world, here: place.localWorld, from: place.startedBy };
  const machines = place?.world ?? 1;
  const count = nproc ?? (config.device === "cuda" ? oneEach(visibleGpus().length, config) : 1);
  checkCount(config, count * machines, nproc);
  const by =
    nproc !== undefined
      ? `--nproc ${nproc}`
      : config.device === "cuda"
        ? "the visible GPUs"
        : `device: ${config.device}`;
  return { ranks: count * machines, here: count, from: machines > 1 ? `${by} on each of ${machines} machines` : by };
}

/** A pod of Kubeflow's that starts several ranks itself. */
function isPod(place: Place, nproc: number | undefined): boolean {
  return place.startedBy === "Kubeflow" && nproc !== undefined && nproc > 1;
}

async function defaultCount(config: Config): Promise<number> {
  if (config.device !== "cuda") return 1; // the CPU, or one GPU that was named
  const { deviceCount } = await import("../torch/cuda.ts");
  return oneEach(deviceCount(), config);
}

/** A rank for each GPU, as far as there are questions for them. */
function oneEach(gpus: number, { trainer }: Config): number {
  return Math.max(1, Math.min(gpus, trainer.questionsPerStep));
}

function checkCount({ device, trainer }: Config, world: number, nproc: number | undefined): void {
  if (nproc === undefined) return;
  if (!Number.isInteger(nproc) || nproc < 1) throw new ConfigError(`--nproc ${nproc}: expected a number of processes`);
  if (nproc > 1 && /^cuda:\d+$/.test(device))
    throw new ConfigError(`--nproc ${nproc} takes a GPU for each rank: set device to cuda, not ${device}`);
  if (world > trainer.questionsPerStep)
    throw new ConfigError(
      `${world} ranks, but trainer.questionsPerStep is ${trainer.questionsPerStep}: some would have nothing to do`,
    );
}

/** The command line that goes on with the run that `args` has begun. */
export function resuming(args: readonly string[]): string[] {
  const isFlag = (arg: string | undefined) => /^--(no-)?(overwrite|resume)(=.*)?$/.test(arg ?? "");
  const isItsValue = (arg: string, i: number) => /^(true|false)$/.test(arg) && isFlag(args[i - 1]); // --overwrite true
  return [...args.filter((arg, i) => !isFlag(arg) && !isItsValue(arg, i)), "--resume"];
}

function launchOf(config: Config, count: number, pod: Place | null): Launch {
  const launch = {
    program: process.execPath,
    args: [...process.execArgv, ...process.argv.slice(1)],
    count,
    folder: path.join(config.runDir, "ranks"),
  };
  if (pod === null) return launch;
  const { world, rank, address, port } = pod;
  return { ...launch, nodes: { count: world, index: rank, address, port } };
}

/**
 * The config as a rank runs it: its own GPU, its share of the processors for threads that are not set and for media workers.
 * @throws ConfigError where the machine has fewer GPUs than ranks, unless each rank sees just its own
 */
export function configOfRank(config: Config, { localRank, localWorld }: Place, gpus: number): Config {
  const share = (all: number) => Math.max(1, Math.floor(all / localWorld));
  const own = { ...config, data: { ...config.data, workers: share(config.data.workers) } };
  if (config.threads === 0) own.threads = share(availableParallelism());
  if (config.device === "cpu") return own;
  if (config.device !== "cuda")
    throw new ConfigError(`device is ${config.device}: the ranks of a job take a GPU each, set device to cuda`);
  if (gpus > 1 && localWorld > gpus)
    throw new ConfigError(`${localWorld} ranks on this machine, but ${gpus} GPUs are visible`);
  return { ...own, device: `cuda:${gpus > 1 ? localRank : 0}` };
}
