import { expect, test } from "vitest";
import { firstHost, readPlace, tasksOnNode } from "../../src/distributed/environment.ts";
import { ConfigError } from "../../src/errors.ts";

const TORCHRUN = {
  RANK: "5",
  WORLD_SIZE: "8",
  LOCAL_RANK: "1",
  LOCAL_WORLD_SIZE: "4",
  MASTER_ADDR: "node0",
  MASTER_PORT: "29500",
};
const SLURM = {
  SLURM_JOB_ID: "812",
  SLURM_STEP_ID: "0",
  SLURM_PROCID: "6",
  SLURM_STEP_NUM_TASKS: "10",
  SLURM_LOCALID: "2",
  SLURM_NODEID: "1",
  SLURM_STEP_TASKS_PER_NODE: "4(x2),2",
  SLURM_STEP_NODELIST: "gpu[07-08,11]",
};
const MPI = {
  OMPI_COMM_WORLD_RANK: "3",
  OMPI_COMM_WORLD_SIZE: "4",
  OMPI_COMM_WORLD_LOCAL_RANK: "3",
  OMPI_COMM_WORLD_LOCAL_SIZE: "4",
};
const KUBEFLOW = { RANK: "2", WORLD_SIZE: "3", MASTER_ADDR: "job-master-0", MASTER_PORT: "23456" };
const GROVE = {
  GROVE_RANK: "1",
  GROVE_WORLD_SIZE: "2",
  GROVE_LOCAL_RANK: "1",
  GROVE_LOCAL_WORLD_SIZE: "2",
  GROVE_MASTER_ADDR: "127.0.0.1",
  GROVE_MASTER_PORT: "4000",
};

test("a process that nobody placed is no rank", () => {
  expect(readPlace({})).toBeNull();
  expect(readPlace({ PATH: "/bin", MASTER_ADDR: "left.over" })).toBeNull();
  expect(readPlace({ RANK: "", WORLD_SIZE: "" })).toBeNull();
});

test("torchrun", () => {
  expect(readPlace(TORCHRUN)).toEqual({
    rank: 5,
    world: 8,
    localRank: 1,
    localWorld: 4,
    address: "node0",
    port: 29500,
    serve: true,
    startedBy: "torchrun",
  });
  // Its agent keeps a store at that port, over all attempts.
  expect(readPlace({ ...TORCHRUN, TORCHELASTIC_USE_AGENT_STORE: "True" })).toMatchObject({ serve: false });
});

test("srun: the meeting is on the step's first node, at a port that follows from the job", () => {
  const place = readPlace(SLURM);
  expect(place).toMatchObject({ rank: 6, world: 10, localRank: 2, localWorld: 4, address: "gpu07", startedBy: "srun" });
  expect(readPlace({ ...SLURM, SLURM_PROCID: "9", SLURM_LOCALID: "1", SLURM_NODEID: "2" })).toMatchObject({
    localWorld: 2,
    port: place?.port,
  });
  expect(readPlace({ ...SLURM, MASTER_ADDR: "other", MASTER_PORT: "1234" })).toMatchObject({
    address: "other",
    port: 1234,
  });
});

test("a batch script of SLURM outside srun is no rank, and neither is a step of one task", () => {
  expect(readPlace({ SLURM_JOB_ID: "812", SLURM_PROCID: "0", SLURM_NTASKS: "8", SLURM_LOCALID: "0" })).toBeNull();
  expect(readPlace({ ...SLURM, SLURM_PROCID: "0", SLURM_LOCALID: "0", SLURM_STEP_NUM_TASKS: "1" })).toBeNull();
});

test("Open MPI: on one machine nothing else is needed, on several the meeting place is", () => {
  expect(readPlace(MPI)).toMatchObject({ rank: 3, world: 4, localRank: 3, address: "127.0.0.1", startedBy: "mpirun" });
  const several = { ...MPI, OMPI_COMM_WORLD_LOCAL_RANK: "1", OMPI_COMM_WORLD_LOCAL_SIZE: "2" };
  expect(() => readPlace(several)).toThrow(/MASTER_ADDR, MASTER_PORT is missing; mpirun -x MASTER_ADDR=/);
  expect(readPlace({ ...several, MASTER_ADDR: "a", MASTER_PORT: "5" })).toMatchObject({ address: "a", port: 5 });
});

test("Kubeflow: one rank a pod", () => {
  expect(readPlace(KUBEFLOW)).toMatchObject({ rank: 2, world: 3, localRank: 0, localWorld: 1, startedBy: "Kubeflow" });
});

test("our own launcher comes first, then torchrun, then mpirun, then srun", () => {
  const all = { ...KUBEFLOW, ...SLURM, ...MPI, ...TORCHRUN, ...GROVE };
  expect(readPlace(all)).toMatchObject({ rank: 1, startedBy: "grove --nproc" });
  expect(readPlace({ ...SLURM, ...MPI, ...TORCHRUN })).toMatchObject({ rank: 5, startedBy: "torchrun" });
  expect(readPlace({ ...SLURM, ...MPI })).toMatchObject({ rank: 3, startedBy: "mpirun" });
});

test.each([
  [{ RANK: "1" }, /RANK=1 says that Kubeflow has started this process, but WORLD_SIZE is missing; unset RANK to run/],
  [{ ...TORCHRUN, RANK: undefined }, /LOCAL_RANK=1, LOCAL_WORLD_SIZE=4 says that torchrun .* but RANK is missing/],
  [{ ...TORCHRUN, MASTER_ADDR: undefined }, /torchrun .* MASTER_ADDR is missing/],
  [{ ...KUBEFLOW, MASTER_PORT: "" }, /Kubeflow .* MASTER_PORT is missing/],
  [{ ...GROVE, GROVE_WORLD_SIZE: undefined }, /GROVE_RANK=1 says .* GROVE_WORLD_SIZE is missing/],
  [{ ...SLURM, SLURM_PROCID: undefined }, /SLURM_STEP_NUM_TASKS=10 says that srun .* SLURM_PROCID is missing/],
  [{ ...TORCHRUN, RANK: "8" }, /RANK is 8, of WORLD_SIZE 8: ranks count from 0/],
  [{ ...TORCHRUN, RANK: "-1" }, /RANK is "-1": expected a whole number/],
  [{ ...TORCHRUN, LOCAL_RANK: "4" }, /rank 4 of 4 on this machine/],
  [{ ...TORCHRUN, LOCAL_WORLD_SIZE: "9" }, /9 of 8 ranks on this machine/],
  [{ ...TORCHRUN, MASTER_PORT: "http" }, /the port is NaN/],
])("an environment that does not hold together is refused: %#", (env, message) => {
  expect(() => readPlace(env)).toThrow(ConfigError);
  expect(() => readPlace(env)).toThrow(message);
});

test("SLURM's lists", () => {
  expect(firstHost("login1")).toBe("login1");
  expect(firstHost("a-1,b-2")).toBe("a-1");
  expect(firstHost("gpu[07-12,15],x")).toBe("gpu07");
  expect(firstHost("rack[3,5]-ib")).toBe("rack3-ib");
  expect(firstHost("r[1-2]i[0,3]n[04-08],login")).toBe("r1i0n04");
  expect(firstHost("")).toBeUndefined();
  expect(["0", "1", "2", "3", "4"].map((node) => tasksOnNode("2(x3),1", node))).toEqual([
    "2",
    "2",
    "2",
    "1",
    undefined,
  ]);
  expect(tasksOnNode("8", undefined)).toBe("8");
  expect(tasksOnNode(undefined, "0")).toBeUndefined();
});
