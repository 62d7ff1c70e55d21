/**
 * Which rank this process is, from what the program that started it has left in the environment.
 *
 *   started by         rank                    of                      on this machine                           meeting at
 *   grove --nproc      GROVE_RANK              GROVE_WORLD_SIZE        GROVE_LOCAL_RANK, GROVE_LOCAL_WORLD_SIZE  GROVE_MASTER_ADDR, _PORT
 *   torchrun           RANK                    WORLD_SIZE              LOCAL_RANK, LOCAL_WORLD_SIZE              MASTER_ADDR, MASTER_PORT
 *   mpirun (Open MPI)  OMPI_COMM_WORLD_RANK    OMPI_COMM_WORLD_SIZE    OMPI_COMM_WORLD_LOCAL_RANK, _LOCAL_SIZE   MASTER_*; alone on a machine: not needed
 *   srun (SLURM)       SLURM_PROCID            SLURM_STEP_NUM_TASKS    SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE  MASTER_*, or the step's first node
 *   Kubeflow           RANK                    WORLD_SIZE              one rank a pod                            MASTER_ADDR, MASTER_PORT
 *
 * The first row whose rank or world is there counts: torchrun inside srun is torchrun. A world of one is no job. In a batch script of SLURM,
 * outside srun, there is no step: the command is a launcher there.
 */

import { ConfigError } from "../errors.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface Place {
  rank: number; // from 0
  world: number;
  localRank: number; // from 0 on each machine: the GPU
  localWorld: number; // ranks on this machine
  address: string;
  port: number;
  /** Whether rank 0 has to keep the store, or whoever started the ranks does already. */
  serve: boolean;
  startedBy: string;
}

interface Source {
  name: string;
  /** Variables of which a process that was started this way has at least one. */
  marks: readonly string[];
  rank: string;
  world: string;
  localRank?: string;
  localWorld?: (env: Environment) => string | undefined;
  address: (env: Environment) => string | undefined;
  port: (env: Environment) => string | undefined;
  missing?: string; // what helps where a variable is missing
}

const masterAddress = (env: Environment) => env.MASTER_ADDR;
const masterPort = (env: Environment) => env.MASTER_PORT;

const SOURCES: readonly Source[] = [
  {
    name: "grove --nproc",
    marks: ["GROVE_RANK", "GROVE_WORLD_SIZE"],
    rank: "GROVE_RANK",
    world: "GROVE_WORLD_SIZE",
    localRank: "GROVE_LOCAL_RANK",
    localWorld: (env) => env.GROVE_LOCAL_WORLD_SIZE,
    address: (env) => env.GROVE_MASTER_ADDR,
    port: (env) => env.GROVE_MASTER_PORT,
  },
  {
    name: "torchrun",
    marks: ["LOCAL_RANK", "LOCAL_WORLD_SIZE"],
    rank: "RANK",
    world: "WORLD_SIZE",
    localRank: "LOCAL_RANK",
    localWorld: (env) => env.LOCAL_WORLD_SIZE,
    address: masterAddress,
    port: masterPort,
  },
  {
    name: "mpirun",
    marks: ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    rank: "OMPI_COMM_WORLD_RANK",
    world: "OMPI_COMM_WORLD_SIZE",
    localRank: "OMPI_COMM_WORLD_LOCAL_RANK",
    localWorld: (env) => env.OMPI_COMM_WORLD_LOCAL_SIZE,
    address: (env) => env.MASTER_ADDR ?? (isOnOneMachine(env) ? "127.0.0.1" : undefined),
    port: (env) => env.MASTER_PORT ?? (isOnOneMachine(env) ? portFrom(env.PMIX_NAMESPACE ?? "mpirun") : undefined),
    missing: "mpirun -x MASTER_ADDR=<host of rank 0> -x MASTER_PORT=<a free port there> hands them to every rank",
  },
  {
    name: "srun",
    marks: ["SLURM_STEP_NUM_TASKS"],
    rank: "SLURM_PROCID",
    world: "SLURM_STEP_NUM_TASKS",
    localRank: "SLURM_LOCALID",
    localWorld: (env) => tasksOnNode(env.SLURM_STEP_TASKS_PER_NODE, env.SLURM_NODEID),
    address: (env) => env.MASTER_ADDR ?? firstHost(env.SLURM_STEP_NODELIST ?? env.SLURM_JOB_NODELIST),
    port: (env) => env.MASTER_PORT ?? portFrom(`${env.SLURM_JOB_ID}.${env.SLURM_STEP_ID}`),
  },
  {
    name: "Kubeflow",
    marks: ["RANK", "WORLD_SIZE"],
    rank: "RANK",
    world: "WORLD_SIZE",
    address: masterAddress,
    port: masterPort,
  },
];

/**
 * The place of this process in its job, or null where it is none's.
 * @throws ConfigError for an environment that is set in part, naming what is there and what is missing, or whose numbers make no sense
 */
export function readPlace(env: Environment): Place | null {
  const source = SOURCES.find(({ marks }) => marks.some((name) => isSet(env[name])));
  if (source === undefined) return null;
  const local = source.localRank === undefined ? [] : [source.localRank];
  const missing = [source.rank, source.world, ...local].filter((name) => !isSet(env[name]));
  if (missing.length > 0) throw halfSet(source, env, missing);
  const place = {
    rank: whole(env, source.rank),
    world: whole(env, source.world),
    localRank: source.localRank === undefined ? 0 : whole(env, source.localRank),
  };
  if (place.world === 1) return null;
  const address = source.address(env);
  const port = source.port(env);
  const localWorld = source.localWorld === undefined ? "1" : source.localWorld(env);
  const unknown = [
    isSet(address) ? [] : ["MASTER_ADDR"],
    isSet(port) ? [] : ["MASTER_PORT"],
    isSet(localWorld) ? [] : ["the number of ranks on this machine"],
  ].flat();
  if (unknown.length > 0) throw halfSet(source, env, unknown);
  const result: Place = {
    ...place,
    localWorld: Number(localWorld),
    address: address as string,
    port: Number(port),
    serve: env.TORCHELASTIC_USE_AGENT_STORE !== "True" || source.name !== "torchrun",
    startedBy: source.name,
  };
  checkPlace(result, source);
  return result;
}

function checkPlace({ rank, world, localRank, localWorld, port }: Place, source: Source): void {
  const problem =
    rank >= world
      ? `${source.rank} is ${rank}, of ${source.world} ${world}: ranks count from 0`
      : !Number.isInteger(localWorld) || localWorld < 1 || localWorld > world
        ? `${localWorld} of ${world} ranks on this machine`
        : localRank >= localWorld
          ? `rank ${localRank} of ${localWorld} on this machine`
          : !Number.isInteger(port) || port < 1 || port > 65535
            ? `the port is ${port}`
            : undefined;
  if (problem !== undefined)
    throw new ConfigError(`the environment that ${source.name} has set makes no sense: ${problem}`);
}

function halfSet(source: Source, env: Environment, missing: readonly string[]): ConfigError {
  const there = source.marks.filter((name) => isSet(env[name])).map((name) => `${name}=${env[name]}`);
  const help = source.missing ?? `unset ${there.map((one) => one.replace(/=.*/, "")).join(", ")} to run alone`;
  return new ConfigError(
    `${there.join(", ")} says that ${source.name} has started this process, but ${missing.join(", ")} is missing; ${help}`,
    { startedBy: source.name, missing },
  );
}

function whole(env: Environment, name: string): number {
  const text = env[name] as string;
  if (!/^\d+$/.test(text.trim())) throw new ConfigError(`${name} is "${text}": expected a whole number`);
  return Number(text);
}

function isSet(text: string | undefined): text is string {
  return text !== undefined && text !== "";
}

function isOnOneMachine(env: Environment): boolean {
  return env.OMPI_COMM_WORLD_LOCAL_SIZE === env.OMPI_COMM_WORLD_SIZE;
}

/** The first machine of a SLURM list: `gpu[07-12,15],login` gives gpu07, `r[1-2]n[04-08]` r1n04. */
export function firstHost(list: string | undefined): string | undefined {
  const first = /^(?:[^,[]|\[[^\]]*\])+/.exec(list ?? "")?.[0];
  return first?.replace(/\[(\d+)[^\]]*\]/g, "$1");
}

/** Tasks on a node from SLURM's `2(x3),1`: two on each of the first three nodes, one on the fourth. */
export function tasksOnNode(counts: string | undefined, node: string | undefined): string | undefined {
  if (!isSet(counts)) return undefined;
  const each = counts.split(",").flatMap((part) => {
    const [, tasks, times] = /^(\d+)(?:\(x(\d+)\))?$/.exec(part) ?? [];
    return Array.from({ length: Number(times ?? 1) }, () => tasks);
  });
  return each[Number(node ?? 0)];
}

/** A port between 20000 and 29999 that all ranks of a job find by its name; jobs that share a machine rarely have the same. */
function portFrom(name: string): string {
  let hash = 0;
  for (const char of name) hash = (Math.imul(hash, 31) + char.charCodeAt(0)) >>> 0;
  return String(20_000 + (hash % 10_000));
}
