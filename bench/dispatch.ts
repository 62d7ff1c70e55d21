/**
 * What one operator call costs the host: at::add of two 16 x 16 float32 tensors from C++, boxed from C++, from TypeScript through the
 * binding, and from PyTorch's Python, in turns within one run, so that all four see the same machine. Microseconds until the call
 * returns (on CUDA: until the kernel is enqueued), result freed each time.
 *
 *   node --import tsx bench/dispatch.ts [--device cuda] [--out file.json]
 *
 * The bar: TypeScript at most 1.2 x C++, and below Python.
 */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { addon } from "../src/torch/addon.ts";
import { cudaAvailable, synchronize } from "../src/torch/cuda.ts";
import type { Device } from "../src/torch/dtype.ts";
import { add, ones } from "../src/torch/ops.ts";
import { environment, type Spread, spread, writeResult } from "./lib/report.ts";

export interface DispatchOptions {
  device?: Device; // default: cuda where there is one
  /** Timed calls a repeat. */
  calls?: number;
  repeats?: number;
  /** JSON file to write. */
  out?: string;
  log?: (line: string) => void;
}

export interface DispatchResult {
  benchmark: "dispatch";
  device: string;
  cores: number;
  torch: string;
  node: string;
  commit: string;
  op: "aten::add.Tensor";
  dtype: "float32";
  shape: [16, 16];
  calls: number;
  repeats: number;
  microseconds: { cpp: Spread; cppBoxed: Spread; typescript: Spread; python: Spread | null };
  /** Ratios of the medians. */
  typescriptOverCpp: number;
  typescriptOverPython: number | null;
}

export async function run(options: DispatchOptions = {}): Promise<DispatchResult> {
  const { device = cudaAvailable() ? "cuda" : "cpu", calls = 50_000, repeats = 15, out, log = () => {} } = options;
  using a = ones([16, 16], { device });
  using b = ones([16, 16], { device });
  const typescript = (n: number): number => {
    synchronize();
    const start = performance.now();
    for (let i = 0; i < n; i++) add(a, b).free();
    const elapsed = performance.now() - start;
    synchronize();
    return (elapsed / n) * 1000;
  };
  const python = await startPython(device);
  const sides: [string, (n: number) => number | Promise<number>][] = [
    ["cpp", (n) => addon.benchAdd(a.handle, b.handle, n, false)],
    ["cppBoxed", (n) => addon.benchAdd(a.handle, b.handle, n, true)],
    ["typescript", typescript],
  ];
  if (python !== null) sides.push(["python", python.time]);
  const samples: Record<string, number[]> = {};
  for (const [, time] of sides) await time(calls / 5); // warm up: JIT, allocator, clocks
  for (let repeat = 0; repeat < repeats; repeat++) {
    for (const [name, time] of sides) {
      samples[name] ??= [];
      samples[name].push(await time(calls));
    }
  }
  python?.stop();
  const side = (name: string): Spread => spread(samples[name]!);
  const microseconds = {
    cpp: side("cpp"),
    cppBoxed: side("cppBoxed"),
    typescript: side("typescript"),
    python: python === null ? null : side("python"),
  };
  const result: DispatchResult = {
    benchmark: "dispatch",
    ...environment(device),
    op: "aten::add.Tensor",
    dtype: "float32",
    shape: [16, 16],
    calls,
    repeats,
    microseconds,
    typescriptOverCpp: microseconds.typescript.median / microseconds.cpp.median,
    typescriptOverPython: microseconds.python && microseconds.typescript.median / microseconds.python.median,
  };
  report(result, log);
  if (out !== undefined) writeResult(out, result);
  return result;
}

const PYTHON = `
import sys, time
import torch
device = sys.argv[1]
torch.set_grad_enabled(False)
a, b = torch.ones(16, 16, device=device), torch.ones(16, 16, device=device)
wait = torch.cuda.synchronize if device != "cpu" else lambda: None
print("ready", flush=True)
for line in sys.stdin:
    n = int(line)
    wait()
    start = time.perf_counter()
    for _ in range(n):
        torch.add(a, b)
    elapsed = time.perf_counter() - start
    wait()
    print(elapsed / n * 1e6, flush=True)
`;

/** A Python that times on request and is idle in between; null where python3 has no torch. */
async function startPython(device: Device): Promise<{ time: (n: number) => Promise<number>; stop: () => void } | null> {
  const child = spawn("python3", ["-c", PYTHON, device], { stdio: ["pipe", "pipe", "ignore"] });
  const failed = new Promise<null>((done) => child.once("error", () => done(null)));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async (): Promise<string | null> => {
    const line = await Promise.race([lines.next(), failed]);
    return line === null || line.done ? null : line.value;
  };
  if ((await next()) !== "ready") return null;
  return {
    time: async (n) => {
      child.stdin.write(`${n}\n`);
      return Number(await next());
    },
    stop: () => child.stdin.end(),
  };
}

function report(result: DispatchResult, log: (line: string) => void): void {
  log(
    `one ${result.op} of 16 x 16 on ${result.device}, torch ${result.torch}, ${result.repeats} x ${result.calls} calls, microseconds`,
  );
  for (const [name, side] of Object.entries(result.microseconds)) {
    if (side === null) log(`  ${name.padEnd(12)} (python3 has no torch)`);
    else log(`  ${name.padEnd(12)} ${side.median.toFixed(3)}  (${side.min.toFixed(3)} to ${side.max.toFixed(3)})`);
  }
  const python = result.typescriptOverPython;
  log(
    `  typescript / cpp ${result.typescriptOverCpp.toFixed(3)}, typescript / python ${python?.toFixed(3) ?? "not measured"}`,
  );
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { values } = parseArgs({
    options: {
      device: { type: "string" },
      out: { type: "string" },
      calls: { type: "string" },
      repeats: { type: "string" },
    },
  });
  await run({
    device: values.device as Device | undefined,
    out: values.out,
    calls: values.calls === undefined ? undefined : Number(values.calls),
    repeats: values.repeats === undefined ? undefined : Number(values.repeats),
    log: (line) => process.stdout.write(`${line}\n`),
  });
}
