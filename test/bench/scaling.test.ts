import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, test } from "vitest";
import { communicationOf } from "../../bench/lib/exposed.ts";
import { type Cluster, type Measured, model, ringSeconds, type Work } from "../../bench/lib/scaling-model.ts";
import { workOf } from "../../bench/lib/scaling-work.ts";
import { releasedConfig } from "../../src/model/qwen2vl/released.ts";

test("the benchmark runs the trainer on one and two ranks with the same questions each, and adds up", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-bench-"));
  try {
    const out = path.join(folder, "scaling.json");
    const small = ["--questions", "2", "--group", "2", "--new-tokens", "3", "--pictures", "1", "--words", "9"];
    const options = ["--shape", "tiny", "--device", "cpu", "--gpus", "1,2", "--steps", "4", ...small, "--out", out];
    const main = path.join(import.meta.dirname, "../../bench/main.ts");
    const said = execFileSync(process.execPath, ["--import", "tsx", main, "scaling", ...options], { encoding: "utf8" });
    expect(said).toMatch(/ranks {2}questions\/s {2}efficiency/);
    expect(said).toContain("not traced: no GPU");
    expect(said).not.toContain("modelled");
    const { measured } = JSON.parse(readFileSync(out, "utf8"));
    expect(measured.map(({ gpus }: { gpus: number }) => gpus)).toEqual([1, 2]);
    for (const { gpus, questionsPerS, stepS, efficiency } of measured) {
      expect(questionsPerS.max).toBeCloseTo((2 * gpus) / stepS.min, 6);
      expect(efficiency).toBeCloseTo(questionsPerS.median / gpus / measured[0].questionsPerS.median, 9);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
}, 120_000);

const kernel = (name: string, ts: number, dur: number, cat = "kernel") => ({ ph: "X", cat, name, ts, dur });

test("exposed: what NCCL's kernels cover and no other kernel, copy or fill does", () => {
  const found = communicationOf([
    kernel("gemm", 0, 100),
    kernel("ncclDevKernel_ReduceScatter", 50, 100), // 50 beside gemm, 50 alone
    kernel("Memcpy DtoH", 120, 10, "gpu_memcpy"), // 10 of those
    kernel("norm", 200, 50),
    kernel("ncclDevKernel_AllGather", 260, 40), // alone
    kernel("ncclDevKernel_AllReduce", 290, 10), // beside the other
    { ph: "X", cat: "cpu_op", name: "aten::mm", ts: 0, dur: 900 },
  ]);
  expect(found?.seconds).toBeCloseTo(300e-6, 12);
  expect(found?.communicationS).toBeCloseTo(140e-6, 12);
  expect(found?.exposedS).toBeCloseTo(80e-6, 12);
  expect(found?.exposedShare).toBeCloseTo(80 / 300, 9);
  expect(communicationOf([kernel("gemm", 0, 10)])).toMatchObject({ communicationS: 0, exposedS: 0 });
  expect(communicationOf([])).toBeNull();
});

const work: Work = {
  ...{ prefillFlops: 10, forwardFlops: 100, decodeSteps: 5, weightBytes: 80, optimizerBytes: 400 },
  decodeBytes: (questions) => 20 + questions,
};
const measured: Measured = {
  ...{ questions: 4, prefillS: 0.8, decodeS: 6, referenceS: 5, updateS: 16, otherS: 0.4 },
  ...{ flops: 100, bytesPerS: 25 },
};
const cluster: Cluster = {
  ...{ nodes: 1, gpusPerNode: 1, questions: 4, flops: 100, bytesPerS: 25, nvlinkBytesPerS: 1e9, nodeBytesPerS: 1e9 },
  ...{ recompute: false, shardReference: false },
};

test("the model of the card that was measured is what was measured, and the optimizer", () => {
  const { computeS, stepS, questionsPerS } = model(work, measured, cluster);
  expect(computeS).toBeCloseTo(0.8 + 6 + 5 + 16 + 0.4 + 400 / 25, 9);
  expect(stepS.hidden).toBeCloseTo(computeS, 6);
  expect(questionsPerS.exposed).toBeCloseTo(4 / computeS, 6);
});

test("half the rates take twice as long; recomputation a forward more; what cannot be hidden is added", () => {
  const slow = model(work, measured, { ...cluster, flops: 50, bytesPerS: 12.5 });
  expect(slow.computeS).toBeCloseTo(2 * (0.8 + 6 + 5 + 16 + 16) + 0.4, 9);
  const again = model(work, measured, { ...cluster, recompute: true });
  expect(again.computeS - model(work, measured, cluster).computeS).toBeCloseTo(16 / 3, 9);
  const linked = { ...cluster, gpusPerNode: 2, nvlinkBytesPerS: 10, shardReference: true };
  const once = 80 / 2 / 10; // of the weights, half of which each of two GPUs hands on
  const two = model(work, measured, linked);
  expect(two.communicationS).toBeCloseTo(once + 2 * 4 * once, 9);
  // the update's 16 s cover the gradients' 16, the reference's 5 s some of its 16
  expect(two.stepS.hidden - two.computeS).toBeCloseTo(once + (16 - 5), 9);
  expect(two.stepS.exposed - two.computeS).toBeCloseTo(two.communicationS, 9);
});

test("a ring of nodes is as fast as its slower link", () => {
  const links = { gpusPerNode: 8, nvlinkBytesPerS: 200, nodeBytesPerS: 100 };
  expect(ringSeconds(1600, { ...links, nodes: 1 })).toBeCloseTo((1600 * 7) / 8 / 200, 9);
  expect(ringSeconds(1600, { ...links, nodes: 8 })).toBeCloseTo((1600 * 63) / 64 / 100, 9);
});

test("a question's work: a decode step reads layers, norm and head of 7B, and what 8 x 128 tokens and a prompt have left", () => {
  const { decodeBytes, decodeSteps, weightBytes, prefillFlops, forwardFlops } = workOf(releasedConfig("7B"), {
    ...{ promptTokens: 954, group: 8, newTokens: 256 },
  });
  const layers = 28 * (3584 * 4608 + 4608 + 3584 ** 2 + 3 * 3584 * 18944 + 2 * 3584);
  expect(decodeBytes(0)).toBe(2 * (layers + 3584 * 152_064));
  expect(decodeBytes(2) - decodeBytes(0)).toBe(2 * (954 + 1024) * 57_344);
  expect(decodeSteps).toBe(255);
  expect(weightBytes).toBe(8_291_375_616 * 2);
  expect(forwardFlops / prefillFlops).toBeGreaterThan(2.5);
});
