/**
 * The typed contract with the native addon (native/*.cc); the only file that loads it. Handles are numbers; lists and results travel
 * through `io`, one exchange buffer shared with C++ (native/tensor.h, native/dispatch.cc). One thread a process may load it.
 */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { AddonError } from "../errors.ts";

/** What resolveOp tells about an argument of an operator. `kind` as in native/dispatch.cc. */
export interface OpParameter {
  name: string;
  kind: number;
  optional: boolean;
  hasDefault: boolean;
  /** Fixed length of an int list (`int[2]`), 0 where it is free. */
  length: number;
}

export interface OpPlan {
  index: number;
  schema: string;
  parameters: OpParameter[];
  /** `alias` is the index of the argument that an in-place operator returns, -1 for a new value. */
  results: { kind: number; alias: number }[];
}

type TypedArray = ArrayBufferView;

/** Each function's meaning, and what it puts into `io`, stands above its definition in native/. */
export interface Addon {
  resolveOp(name: string): OpPlan;
  callOp(): void;
  listOps(part: string): string[];
  exchangeBuffer(): ArrayBuffer;
  tensorMeta(handle: number): void;
  tensorFree(count: number): void;
  tensorIsLive(handle: number): boolean;
  tensorItem(handle: number): number;
  tensorRead(handle: number, target: TypedArray, dtype: number): void;
  tensorFromArray(
    data: TypedArray,
    sourceDtype: number,
    ndim: number,
    dtype: number,
    device: number,
    pinned: boolean,
  ): number;
  liveTensors(): void;
  mapOpen(path: string): number;
  mapTensor(map: number, byteOffset: number, ndim: number, dtype: number): number;
  mapClose(map: number): void;
  mapRead(count: number, threads: number): void;
  memoryPrepare(memory: TypedArray): void;
  memoryRelease(memory: TypedArray): void;
  tensorBytesTo(handle: number, from: number, target: TypedArray): void;
  setGradMode(enabled: boolean): boolean;
  setRequiresGrad(handle: number, requires: boolean): void;
  getGrad(handle: number): number;
  setGrad(handle: number, grad: number): void;
  runBackward(count: number, retainGraph: boolean): void;
  runGrad(numOutputs: number, numInputs: number, retainGraph: boolean, allowUnused: boolean): void;
  generatorNew(seed: number, device: number): number;
  generatorFree(handle: number): void;
  generatorGetState(handle: number): number;
  generatorSetState(handle: number, state: number): void;
  cudaAvailable(): boolean;
  cudaDeviceCount(): number;
  cudaSetDevice(index: number): void;
  cudaDeviceName(index: number): string;
  cudaSynchronize(): void;
  cudaMemoryStats(): void;
  cudaResetPeakMemory(): void;
  cudaEmptyCache(): void;
  streamNew(highPriority: boolean): number;
  streamFree(handle: number): void;
  streamSetCurrent(handle: number): void;
  streamSynchronize(handle: number): void;
  streamWaitEvent(stream: number, event: number): void;
  eventNew(): number;
  eventFree(handle: number): void;
  eventRecord(event: number, stream: number): void;
  eventSynchronize(event: number): void;
  eventQuery(event: number): boolean;
  eventElapsed(start: number, end: number): number;
  graphNew(): number;
  graphFree(handle: number): void;
  graphBegin(graph: number, poolOf: number): void;
  graphEnd(graph: number): void;
  graphReplay(graph: number): void;
  groupOpen(
    numbers: Float64Array, // rank, world, port, timeout, heartbeat and stall in ms
    host: string,
    nccl: boolean,
    serve: boolean,
    name: string,
    where: string,
  ): number;
  groupClose(group: number): void;
  groupOperation(group: number, text: string): void;
  groupFail(group: number, error: string, closingMs: number): void;
  collectiveStart(group: number, kind: number, tensor: number, root: number, timeoutMs: number): number;
  collectiveWait(pending: number): void;
  storeSet(group: number, key: string, bytes: TypedArray): void;
  storeAdd(group: number, key: string, n: number): number;
  storeTake(group: number, key: string): Uint8Array | undefined;
  endWithParent(pid: number): void;
  stallWatch(limitMs: number, patienceMs: number, device: number, who: string, where: string): void;
  stallUnwatch(): void;
  stallOperation(text: string): void;
  stallTurn(debugged: boolean): void;
  stallPatience(begin: boolean): void;
  loadKernels(path: string): void;
  setNumThreads(threads: number): void;
  setDeterministic(on: boolean): void;
  profileStart(device: boolean, operators: boolean): void;
  profileStop(path: string): void;
  versions(): { torch: string; cudaBuild: boolean; kernels: boolean; threads: number };
  benchAdd(a: number, b: number, calls: number, boxed: boolean): number;
}

/** build/native/current.json, as scripts/native/build.mjs writes it. */
interface CurrentBuild {
  addon: string;
  kernels: string | null;
  torch: { dir: string; version: string; cuda: boolean };
}

function currentBuild(): CurrentBuild {
  const path = fileURLToPath(new URL("../../build/native/current.json", import.meta.url));
  if (process.env.GROVE_ADDON) {
    return { addon: process.env.GROVE_ADDON, kernels: null, torch: { dir: "", version: "", cuda: false } };
  }
  if (!existsSync(path)) throw new AddonError("the native addon is not built; run `npm run setup`");
  return JSON.parse(readFileSync(path, "utf8")) as CurrentBuild;
}

function load(): Addon {
  const build = currentBuild();
  // OpenMP's threads spin for milliseconds while they wait, unless told otherwise: beside video decoding on the same cores that makes every
  // op many times slower. Not spinning at all costs a fifth of a small model's step: some microseconds are right for both.
  if (process.env.OMP_WAIT_POLICY === undefined) process.env.GOMP_SPINCOUNT ??= "10000";
  process.env.KINETO_LOG_LEVEL ??= "5"; // the profiler's lines on the terminal are for its developers
  let loaded: Addon;
  try {
    loaded = createRequire(import.meta.url)(build.addon) as Addon;
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new AddonError(`the native addon ${build.addon} does not load: ${reason}; run \`npm run setup\``, cause);
  }
  if (build.torch.cuda && !loaded.versions().cudaBuild) {
    throw new AddonError(`libtorch at ${build.torch.dir} has CUDA, but libtorch_cuda was not loaded with the addon`);
  }
  const kernels = process.env.GROVE_KERNELS || build.kernels;
  if (kernels && loaded.cudaAvailable()) loaded.loadKernels(kernels);
  return loaded;
}

/** The loaded addon. Grad mode is off from here on (autograd.ts switches it on for the length of a function). */
export const addon: Addon = load();

/** The exchange buffer: what a call reads before it runs and writes when it returns. Never hold a value in it across two calls. */
export const io = new Float64Array(addon.exchangeBuffer());
