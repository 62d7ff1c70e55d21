import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { RunFolder, readMetrics } from "../../src/trainer/run-folder.ts";
import { tracedStep } from "../../src/trainer/step-trace.ts";
import { type Training, trainingLoop } from "../../src/trainer/training-loop.ts";
import type { Metrics } from "../../src/types.ts";

let runDir: string;
beforeEach(() => {
  runDir = mkdtempSync(path.join(tmpdir(), "loop-"));
});
afterEach(() => rmSync(runDir, { recursive: true }));

/** A training that does nothing but write down what it is asked to do. */
class Diary implements Training {
  readonly entries: string[] = [];
  readonly steps: number;
  readonly firstStep: number;
  onStep = (_step: number) => {};
  onEval = () => {};
  constructor(steps: number, firstStep = 0) {
    this.steps = steps;
    this.firstStep = firstStep;
  }
  async runStep(step: number) {
    this.entries.push(`step ${step}`);
    this.onStep(step);
    return { loss: step };
  }
  async evaluate(stopped: () => boolean) {
    this.entries.push("eval");
    this.onEval();
    return stopped() ? null : { "eval/L1/accuracy": 0.5 };
  }
  async save(done: number, last: boolean) {
    this.entries.push(last ? `last save ${done}` : `save ${done}`);
  }
  rate(done: number, metrics: Metrics) {
    this.entries.push(`rate ${done} ${metrics["eval/L1/accuracy"]}`);
  }
  checkpoints = {
    check: () => {},
    saved: async () => void this.entries.push("all saved"),
    takeMetrics: (): Metrics => ({}),
  };
  exportModel() {
    this.entries.push("export");
    return "final";
  }
}

async function run(diary: Diary, trainer: Partial<Config["trainer"]>, options: { resumeAt?: number } = {}) {
  const config = configSchema.parse({ model: { path: "unused" }, runDir, trainer });
  using folder = new RunFolder(config, options);
  return await trainingLoop(diary, folder, config, {});
}

test("saves and evaluates when they are due, and at the end", async () => {
  const diary = new Diary(5);
  expect(await run(diary, { saveEvery: 2, evalEvery: 3 })).toEqual({
    runDir,
    step: 5,
    finished: true,
    finalDir: "final",
  });
  const expected =
    "eval, step 0, step 1, save 2, step 2, eval, step 3, save 4, step 4, eval, last save 5, all saved, export";
  expect(diary.entries.join(", ")).toBe(expected);
  expect(readMetrics(path.join(runDir, "metrics.jsonl"))).toEqual([
    { step: 0, "eval/L1/accuracy": 0.5 },
    { step: 1, loss: 0 },
    { step: 2, loss: 1 },
    { step: 3, loss: 2, "eval/L1/accuracy": 0.5 },
    { step: 4, loss: 3 },
    { step: 5, loss: 4, "eval/L1/accuracy": 0.5 },
  ]);
});

test("a resumed training starts where it left off; a finished one only exports", async () => {
  const resumed = new Diary(3, 2);
  await run(resumed, { saveEvery: 0, evalEvery: 1 });
  expect(resumed.entries).toEqual(["step 2", "eval", "last save 3", "all saved", "export"]);
  rmSync(runDir, { recursive: true });
  const finished = new Diary(3, 3);
  await run(finished, { saveEvery: 1 });
  expect(finished.entries).toEqual(["all saved", "export"]);
});

test("a signal lets the step finish, then saves; a second later the handlers are gone", async () => {
  const before = process.listenerCount("SIGTERM");
  const diary = new Diary(9);
  diary.onStep = (step) => void (step === 3 && process.emit("SIGTERM", "SIGTERM"));
  expect(await run(diary, { saveEvery: 0, evalEvery: 4 })).toMatchObject({ step: 4, finished: false, finalDir: null });
  expect(diary.entries).toEqual(["eval", "step 0", "step 1", "step 2", "step 3", "last save 4", "all saved"]);
  process.emit("SIGTERM", "SIGTERM"); // the same request, passed on late: nothing happens
  await vi.waitFor(() => expect(process.listenerCount("SIGTERM")).toBe(before), { timeout: 60_000 });
});

test("an evaluation that a signal cuts short is made when the run goes on, and told of the checkpoint", async () => {
  const stopped = new Diary(5);
  let evaluations = 0;
  stopped.onEval = () => void (++evaluations === 2 && process.emit("SIGTERM", "SIGTERM"));
  expect(await run(stopped, { saveEvery: 0, evalEvery: 2 })).toMatchObject({ step: 2, finished: false });
  expect(stopped.entries.join(", ")).toBe("eval, step 0, step 1, eval, last save 2, all saved");
  for (const again of [1, 2]) {
    const resumed = new Diary(5, 2);
    if (again === 1) resumed.onEval = () => void process.emit("SIGTERM", "SIGTERM"); // cut short once more
    await run(resumed, { saveEvery: 0, evalEvery: 2 }, { resumeAt: 2 });
    const rest = "rate 2 0.5, step 2, step 3, eval, step 4, eval, last save 5, all saved, export";
    expect(resumed.entries.join(", ")).toBe(again === 1 ? "eval, all saved" : `eval, ${rest}`);
  }
  expect(readMetrics(path.join(runDir, "metrics.jsonl"))).toEqual([
    { step: 0, "eval/L1/accuracy": 0.5 },
    { step: 1, loss: 0 },
    { step: 2, loss: 1, "eval/L1/accuracy": 0.5 },
    { step: 3, loss: 2 },
    { step: 4, loss: 3, "eval/L1/accuracy": 0.5 },
    { step: 5, loss: 4, "eval/L1/accuracy": 0.5 },
  ]);
});

test("an error in a step is passed on, and handlers are taken off", async () => {
  const before = process.listenerCount("SIGINT");
  const diary = new Diary(3);
  diary.onStep = () => {
    throw new Error("broken");
  };
  await expect(run(diary, {})).rejects.toThrow("broken");
  expect(process.listenerCount("SIGINT")).toBe(before);
});

test("what a checkpoint took stands in the line of the step after it; one that failed ends the run with that line written", async () => {
  const diary = new Diary(9);
  let after = "";
  diary.onStep = (step) => {
    after = `after step ${step}`;
  };
  diary.checkpoints.takeMetrics = (): Metrics => (after === "after step 2" ? { "time/checkpoint_s": 0.5 } : {});
  diary.checkpoints.check = () => {
    if (after === "after step 4") throw new Error("disk full");
  };
  await expect(run(diary, { saveEvery: 2 })).rejects.toThrow("disk full");
  expect(diary.entries.filter((entry) => entry.includes("save"))).toEqual(["save 2", "save 4"]);
  expect(readMetrics(path.join(runDir, "metrics.jsonl"))).toEqual([
    { step: 1, loss: 0 },
    { step: 2, loss: 1 },
    { step: 3, loss: 2, "time/checkpoint_s": 0.5 },
    { step: 4, loss: 3 },
    { step: 5, loss: 4 },
  ]);
});

test("a step that is to be traced leaves a trace, the others none", async () => {
  await run(new Diary(3), { traceSteps: [2] });
  expect(readdirSync(runDir).filter((name) => name.startsWith("trace"))).toEqual(["trace-000002.json"]);
  expect(JSON.parse(readFileSync(path.join(runDir, "trace-000002.json"), "utf8"))).toHaveProperty("traceEvents");
  expect(readMetrics(path.join(runDir, "metrics.jsonl")).map(({ loss }) => loss)).toEqual([0, 1, 2]);
});

test("the ranks of a job leave a trace each", async () => {
  const config = configSchema.parse({ model: { path: "m" }, device: "cpu", runDir, trainer: { traceSteps: [2] } });
  for (const rank of [0, 3]) await tracedStep(config, runDir, 2, rank, async () => ({}));
  expect(
    readdirSync(runDir)
      .filter((name) => name.startsWith("trace"))
      .sort(),
  ).toEqual(["trace-000002-rank-3.json", "trace-000002.json"]);
});

test("without saveFinal a run leaves its periodic checkpoints and no model", async () => {
  const diary = new Diary(3);
  expect(await run(diary, { saveEvery: 2, saveFinal: false })).toMatchObject({ finished: true, finalDir: null });
  expect(diary.entries.join(", ")).toBe("step 0, step 1, save 2, step 2, all saved");
});
