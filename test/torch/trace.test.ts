/** What is recorded, and what is said of it. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { add, randn } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { recordTrace, summarizeTrace } from "../../src/torch/trace.ts";

const root = mkdtempSync(join(tmpdir(), "grove-trace-"));
afterAll(() => rmSync(root, { recursive: true }));
const file = join(root, "trace.json");

const kernel = (name: string, ts: number, dur: number) => ({ ph: "X", cat: "kernel", name, ts, dur });

test("time that several kernels share is busy once, and what is no work of the device does not count", () => {
  const traceEvents = [
    kernel("gemm", 100, 50),
    kernel("add", 120, 10), // inside the former, on another stream
    kernel("gemm", 140, 30), // begins before the first one ends
    { ph: "X", cat: "gpu_memcpy", name: "copy", ts: 200, dur: 5 },
    { ph: "X", cat: "cpu_op", name: "aten::add", ts: 90, dur: 400 },
    { ph: "M", name: "process_name", ts: 0 },
  ];
  const { seconds, busyS, kernels } = summarizeTrace({ traceEvents }, 1e-3);
  expect(seconds).toBe(1e-3);
  expect(busyS).toBeCloseTo(75e-6, 12);
  expect(kernels.map(({ name, calls, seconds: s }) => [name, calls, Math.round(s * 1e6)])).toEqual([
    ["gemm", 2, 80],
    ["add", 1, 10],
    ["copy", 1, 5],
  ]);
});

test("a recording of operators names those that ran, hands on the result, and leaves room for the next one", async () => {
  const sum = () =>
    scope(() => {
      const x = randn([4, 4]);
      return add(x, x).shape;
    });
  for (let i = 0; i < 2; i++) {
    const { result, summary } = await recordTrace(file, sum, { operators: true });
    expect(result).toEqual([4, 4]);
    expect(summary?.seconds).toBeGreaterThan(0);
    const { traceEvents } = JSON.parse(readFileSync(file, "utf8")) as { traceEvents: { name: string }[] };
    expect(traceEvents.map(({ name }) => name)).toContain("aten::add");
  }
});

test("a second recording inside one is refused and the first one goes on; one whose body fails ends", async () => {
  const nested = () => recordTrace(`${file}.2`, () => 0);
  const { result } = await recordTrace(file, () => nested().catch((error: Error) => error.message));
  expect(result).toMatch(/under way/);
  await expect(recordTrace(file, () => Promise.reject(new Error("body")))).rejects.toThrow("body");
  await expect(recordTrace(file, () => 7)).resolves.toMatchObject({ result: 7 });
});

test("what was done is not lost where its trace cannot be written", async () => {
  const traced = await recordTrace(join(root, "no", "such", "folder.json"), () => 7, { operators: true });
  expect(traced).toEqual({ result: 7, summary: null });
});
