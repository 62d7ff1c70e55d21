/**
 * What each rank of distributed.test.ts does: the case named by the first argument, its outcome as JSON on standard output. A second argument,
 * cuda, gives each rank a GPU.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { GroveError } from "../../src/errors.ts";
import { setDevice } from "../../src/torch/cuda.ts";
import { ProcessGroup } from "../../src/torch/distributed.ts";
import { slice } from "../../src/torch/ops.ts";
import { type Device, type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { gpuOfRank } from "./gpus.ts";

const { RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT } = process.env;
const rank = Number(RANK);
const world = Number(WORLD_SIZE);
const onGpu = process.argv[3] === "cuda";
const device: Device = onGpu ? `cuda:${gpuOfRank(rank)}` : "cpu";
if (onGpu) setDevice(gpuOfRank(rank));
const join = (more: object = {}) =>
  new ProcessGroup({
    rank,
    world,
    address: MASTER_ADDR as string,
    port: Number(MASTER_PORT),
    nccl: onGpu,
    timeoutMs: 20_000,
    ...more,
  });

/** n values that differ from rank to rank and sum to something that depends on the order of float32 additions. */
function values(n: number, of = rank): number[] {
  return Array.from({ length: n }, (_, i) => Math.sin(i * 12.9898 + of * 78.233) * 10 ** ((i + of) % 5));
}
const tensor = (numbers: number[], dtype: DType = "float32") => fromArray(numbers, [numbers.length], { dtype, device });
const done = (...tensors: Tensor[]) => tensors.map((one) => one.toNumbers());

/** What a call is refused with. */
function messageOf(call: () => unknown): string {
  try {
    call();
    return "unreachable";
  } catch (error) {
    return (error as Error).message;
  }
}

const cases: Record<string, () => unknown | Promise<unknown>> = {
  results: async () => {
    using group = join();
    const sum = tensor(values(10));
    const half = tensor(values(7), "bfloat16");
    const whole = tensor([rank, 2 ** 40 + rank], "int64");
    const most = tensor(values(5));
    const scattered = tensor(values(3 * world));
    const gathered = tensor(values(2 * world));
    const told = tensor(values(4));
    const pending = [
      group.allReduce(sum),
      group.allReduce(half),
      group.allReduce(whole),
      group.allReduce(most, "max"),
      group.reduceScatter(scattered),
      group.allGather(gathered),
      group.broadcast(told, world - 1),
    ]; // several on their way at a time
    for (const one of pending) one.wait();
    const own = slice(scattered, 0, 3 * rank, 3 * rank + 3);
    const big = tensor(Array.from({ length: 3_000_001 }, (_, i) => (i % 7) + rank)); // several messages a piece
    group.allReduce(big).wait();
    const all = big.toNumbers();
    const bigRight = all.every((value, i) => value === world * (i % 7) + (world * (world - 1)) / 2);
    const counted = group.count("arrived", 1);
    group.barrier();
    const arrived = group.count("arrived", 0);
    if (rank === 0) group.post("note", Buffer.from("hello"));
    group.barrier();
    const note = rank === world - 1 ? group.take("note") : undefined;
    const gone = group.take("other") === undefined;
    const [sums, halves, wholes, mosts, owns, gathereds, tolds] = done(sum, half, whole, most, own, gathered, told);
    const reduced = { sums, halves, wholes, mosts, owns, gathereds, tolds, bigRight };
    await group.leave();
    return { ...reduced, counted, arrived, note: note && Buffer.from(note).toString(), gone };
  },
  late: async () => {
    using group = join();
    group.barrier();
    if (rank === 1) {
      await sleep(1500);
      return "late";
    }
    const flat = tensor(values(6));
    group.allReduce(flat, "sum", { timeoutMs: 300 }).wait();
    return "unreachable";
  },
  mismatch: () => {
    using group = join();
    const flat = tensor(values(rank === 0 ? 6 : 8));
    group.allReduce(flat, "sum", { timeoutMs: 3000 }).wait();
    return "unreachable";
  },
  absent: async () => {
    if (rank === 2) return "never came";
    using _group = join({ timeoutMs: 1000 });
    return "unreachable";
  },
  "gone for good": async () => {
    using group = join();
    group.barrier();
    if (rank === 1) group.count("through", 1);
    // A barrier ends at one rank before it does at another, which must have read what the store holds.
    while (rank === 0 && group.count("through", 0) === 0) await sleep(5);
    if (rank === 0) process.kill(process.pid, "SIGKILL");
    await sleep(300);
    group.allReduce(tensor([1])).wait();
    return "unreachable";
  },
  misuse: async () => {
    using group = join();
    const refused = [
      () => group.broadcast(tensor([1]), world),
      () => group.broadcast(tensor([1]), -1),
      () => group.allReduce(tensor([1], "bool")),
      () => group.reduceScatter(tensor(values(world), "float16")),
    ];
    const messages = refused.map((start) => messageOf(() => start().wait()));
    const sum = tensor([1]);
    group.allReduce(sum).wait(); // nobody has lost step
    await group.leave();
    return { messages, sum: done(sum) };
  },
  uneven: async () => {
    using group = join();
    const start = () => group.reduceScatter(tensor(values(2 * world + 1)));
    const message = messageOf(start);
    await group.leave(); // rank 0 keeps the store: others may still be joining
    return { message };
  },
};

try {
  const outcome = await (cases[process.argv[2] as string] as () => unknown)();
  process.stdout.write(JSON.stringify(outcome));
} catch (error) {
  if (!(error instanceof GroveError)) throw error;
  process.stdout.write(JSON.stringify({ error: error.code, message: error.message }));
}
