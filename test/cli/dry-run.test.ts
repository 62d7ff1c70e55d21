/** Every config in configs/ loads, plans and prints itself; the seed's configs hold the seed's values. */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { main } from "../../src/cli/main.ts";
import { dumpConfig, loadConfig, parseConfig } from "../../src/config/load.ts";
import { captureOutput } from "./capture.ts";

const folder = fileURLToPath(new URL("../../configs/", import.meta.url));
const at = (name: string) => path.join(folder, name);

const { out, err } = captureOutput();

/** Config file -> the commands it is for, and what must come before it. */
const USES: Record<string, { commands: string[]; base?: string }> = {
  "8xa100.yaml": { commands: ["grpo", "eval"] },
  "8xa100-care.yaml": { commands: ["grpo", "eval"] },
  "8xa100-sft.yaml": { commands: ["sft"] },
  "lora-24gb.yaml": { commands: ["grpo", "sft", "eval"] },
  "eval-seed-bench-r1.yaml": { commands: ["eval"] },
  "eval-longvideobench.yaml": { commands: ["eval"] },
  "quickstart.yaml": { commands: ["eval"] },
  "quickstart-sft.yaml": { commands: ["sft", "eval"], base: "quickstart.yaml" },
  "quickstart-grpo.yaml": { commands: ["grpo", "eval"], base: "quickstart.yaml" },
};

test("every config is planned below", () => {
  expect(Object.keys(USES).sort()).toEqual(
    readdirSync(folder)
      .filter((name) => name.endsWith(".yaml"))
      .sort(),
  );
});

test.each(
  Object.entries(USES).flatMap(([file, { commands, base }]) =>
    commands.map((command) => [file, command, base] as const),
  ),
)("configs/%s: %s --dry-run prints a plan as comments, then the config", async (file, command, base) => {
  const files = [...(base === undefined ? [] : [at(base)]), at(file)];
  expect(await main([command, "--dry-run", ...files.flatMap((name) => ["--config", name])])).toBe(0);
  const lines = out.text.split("\n");
  const comments = lines.filter((line) => line.startsWith("# "));
  expect(lines.slice(0, comments.length)).toEqual(comments);
  expect(comments[0]).toBe(`# plan of ${command}`);
  const config = loadConfig({ files });
  expect(parseConfig(out.text, "dry-run")).toEqual(config);
  const named = command === "eval" ? Object.values(config.data.eval) : config.data.train;
  for (const source of named) expect(comments.some((line) => line.endsWith(`(${source.file})`))).toBe(true);
  expect(comments.some((line) => line.startsWith("# model: "))).toBe(true);
  expect(err.text).toBe("");
});

test("--nproc and --device-memory: whether GPUs that are not here hold it, and which knobs would help", async () => {
  const plan = ["grpo", "--dry-run", "--config", at("8xa100.yaml"), "--device-memory", "40", "--nproc"];
  expect(await main([...plan, "8"])).toBe(0);
  expect(out.text).toMatch(/^# ranks: 8 \(--nproc 8\)$/m);
  expect(out.text).toMatch(/^# memory of each of 8 ranks, on cuda, GiB/m);
  expect(out.text).toMatch(
    /^# fits 40\.00 GiB \(--device-memory\): needs [\d.]+ \+- [\d.]+ GiB, about [\d.]+ of it CUDA's own$/m,
  );
  expect(err.text).toBe("");
  expect(await main([...plan, "2"])).toBe(1);
  expect(out.text).toMatch(/^# does not fit 40\.00 GiB/m);
  expect(err.text).toMatch(/^error \[MEMORY\] each of 2 ranks needs [\d.]+ GiB on cuda/);
  expect(err.text).toMatch(/hint: it fits with /);
});

test.each([
  [["--nproc", "9"], /9 ranks, but trainer\.questionsPerStep is 8/],
  [["--device-memory", "0"], /--device-memory 0: expected GiB above 0/],
])("a plan for what cannot be is refused: %j", async (flags, message) => {
  expect(await main(["grpo", "--dry-run", "--config", at("8xa100.yaml"), ...flags])).toBe(1);
  expect(err.text).toMatch(message);
});

test("an adapter on 7B fits one GPU of 24 GiB, all of its weights do not", async () => {
  const plan = ["grpo", "--dry-run", "--config", at("lora-24gb.yaml"), "--device-memory", "24"];
  expect(await main(plan)).toBe(0);
  expect(out.text).toMatch(/^# fits 24\.00 GiB/m);
  expect(out.text).not.toMatch(/^# {3}reference: /m);
  expect(Number(/^# {3}gradients: ([\d.]+)$/m.exec(out.text)?.[1])).toBeLessThan(0.1);
  const all = { ...loadConfig({ files: [at("lora-24gb.yaml")] }), lora: undefined };
  const file = path.join(mkdtempSync(path.join(tmpdir(), "grove-whole-")), "whole.yaml");
  writeFileSync(file, dumpConfig(all));
  out.text = "";
  expect(await main([...plan.slice(0, 3), file, ...plan.slice(4)])).toBe(1);
  rmSync(path.dirname(file), { recursive: true });
  expect(out.text).toMatch(/^# does not fit 24\.00 GiB/m);
});

test("a run that this machine's GPUs cannot hold is refused before anything is loaded", async () => {
  const tools = mkdtempSync(path.join(tmpdir(), "grove-tools-"));
  const before = { ...process.env };
  try {
    writeFileSync(path.join(tools, "nvidia-smi"), "#!/bin/sh\nprintf '0, GPU-1, 40960\\n1, GPU-2, 24576\\n'\n", {
      mode: 0o755,
    });
    process.env.PATH = `${tools}:${process.env.PATH}`;
    delete process.env.CUDA_VISIBLE_DEVICES;
    expect(await main(["grpo", "--config", at("8xa100.yaml")])).toBe(1);
    expect(err.text).toMatch(
      /^error \[MEMORY\] each of 2 ranks needs [\d.]+ GiB on cuda, \+- [\d.]+, and this machine has 24\.00/,
    );
    out.text = "";
    expect(await main(["grpo", "--dry-run", "--config", at("8xa100.yaml"), "--nproc", "1"])).toBe(1);
    expect(out.text).toMatch(/^# does not fit 40\.00 GiB \(this machine\)/m); // the other GPU has no rank
    process.env.CUDA_VISIBLE_DEVICES = "0";
    expect(await main(["grpo", "--config", at("8xa100.yaml")])).toBe(1);
    expect(err.text).toMatch(/error \[MEMORY\] this run needs [\d.]+ GiB .* this machine has 40\.00/);
  } finally {
    process.env = before;
    rmSync(tools, { recursive: true });
  }
});

test.each([
  ["sweep", "sweeps/rendered.yaml"],
  ["ablation", "ablations/rendered.yaml"],
])("%s --dry-run on cuda is for any machine, and says what the runs need", async (command, file) => {
  const { PATH } = process.env;
  try {
    process.env.PATH = "";
    expect(await main([command, "--dry-run", "--config", at(file), "--set", "device=cuda"])).toBe(0);
    expect(out.text).toMatch(/^(# )?\d+ .*, as many at a time as there are GPUs for, into /);
    expect(out.text).toMatch(/^(# )?GPUs: 1 for each run \(gpusPerRun\), 0 visible here: without --dry-run/m);
    expect(err.text).toBe("");
  } finally {
    process.env.PATH = PATH;
  }
});

test("what is missing is said: training data, media, memory that no knob makes up for", async () => {
  const here = mkdtempSync(path.join(tmpdir(), "grove-missing-"));
  const records = path.join(here, "records.jsonl");
  const record = (i: number) => ({ question: "q", options: ["a", "b"], answer: "a", video: `lost/${i}.mp4` });
  writeFileSync(records, Array.from({ length: 20 }, (_, i) => `${JSON.stringify(record(i))}\n`).join(""));
  const plan = ["grpo", "--dry-run", "--set", "model.path=Qwen/Qwen2-VL-7B-Instruct"];
  const set = (train: string) => [...plan, "--set", `data.train=${train}`];
  try {
    const none = ["--set", "trainer.evalEvery=5", "--set", `data.eval.L1={file: "${records}", format: generic}`];
    expect(await main([...set("[]"), ...none])).toBe(0);
    expect(out.text).toMatch(/^# {3}data\.train names none$/m);
    const lost = `20 records; of 8 that were looked at 8 lack media, such as ${here}/lost/0.mp4 (${records})`;
    expect(out.text).toContain(`#   eval L1: ${lost}\n`);

    out.text = "";
    const small = ["--device-memory", "1", "--set", "device=cuda"];
    expect(await main([...set(`[{file: "${records}", format: generic}]`), ...small])).toBe(1);
    expect(out.text).toContain(`#   train 1: ${lost}\n`);
    expect(out.text).toContain("#   no knob that was tried makes it fit: a smaller model, or larger GPUs\n");
    expect(err.text).toContain("hint: no knob that was tried makes it fit");

    out.text = "";
    expect(
      await main([...set("[]"), "--nproc", "2", "--set", "device=cpu", "--set", "trainer.questionsPerStep=2"]),
    ).toBe(0);
    expect(out.text).toMatch(/GiB \(of this machine's, for each of 2 ranks\)/);
  } finally {
    rmSync(here, { recursive: true });
  }
});

test("--device-memory is for a dry run", async () => {
  expect(await main(["grpo", "--config", at("8xa100.yaml"), "--device-memory", "40"])).toBe(1);
  expect(err.text).toMatch(/together with --dry-run/);
});

test("a dry run needs no libtorch", async () => {
  await main(["grpo", "--dry-run", "--config", at("8xa100.yaml")]);
  const report = process.report.getReport() as unknown as { sharedObjects: string[] };
  expect(report.sharedObjects.filter((file) => /torch/.test(file))).toEqual([]);
});

test("the seed's GRPO and SFT values, from its scripts", () => {
  const grpo = loadConfig({ files: [at("8xa100.yaml")] });
  expect(grpo).toMatchObject({
    seed: 42,
    dtype: "bfloat16",
    model: { freezeVision: false, recompute: "layer" },
    data: { fps: 2, minFrames: 4, maxFrames: 16, resizedHeight: 256, resizedWidth: 256, maxPromptTokens: 8192 },
    rollout: { groupSize: 8, maxNewTokens: 256, temperature: 1, topK: 50, topP: 1 },
    rewards: [{ name: "accuracy", weight: 1 }],
    trainer: {
      epochs: 1,
      questionsPerStep: 8,
      iterations: 1,
      klCoef: 0.1,
      klClamp: 11,
      advantageEps: 1e-4,
      saveEvery: 10,
    },
    optimizer: { learningRate: 1e-6, schedule: "linear", warmupFraction: 0, weightDecay: 0, maxGradNorm: 1 },
    compat: { hiddenTopK: true, unmaskedSecondEos: true, firstLetterReward: true },
  });
  const sft = loadConfig({ files: [at("8xa100-sft.yaml")] });
  expect(sft).toMatchObject({
    data: { train: [{ format: "seed-bench-r1-sft" }], resizedHeight: 256, maxFrames: 16 },
    trainer: { epochs: 1, questionsPerStep: 128 },
    optimizer: { learningRate: 2e-5, schedule: "cosine", warmupFraction: 0.1, maxGradNorm: 1 },
    compat: { hiddenTopK: false, unmaskedSecondEos: false, firstLetterReward: false },
  });
  for (const name of ["eval-seed-bench-r1.yaml", "eval-longvideobench.yaml"]) {
    const { data, eval: asked, compat } = loadConfig({ files: [at(name)] });
    expect(asked).toMatchObject({ greedy: true, maxNewTokens: 256 });
    expect(compat).toEqual({ hiddenTopK: false, unmaskedSecondEos: false, firstLetterReward: true });
    expect(data).toMatchObject({ onBadSample: "error", resizedHeight: 256, resizedWidth: 256, maxFrames: 16 });
  }
});

test("GRPO-CARE's values, from its script and trainer", () => {
  expect(loadConfig({ files: [at("8xa100-care.yaml")] })).toMatchObject({
    ...{ seed: 42, dtype: "bfloat16", model: { freezeVision: false, recompute: "layer" } },
    data: { fps: 2, minFrames: 4, maxFrames: 16, maxPromptTokens: 16384 },
    rollout: { groupSize: 8, maxNewTokens: 768, temperature: 1, topK: 50, topP: 0.95 },
    rewards: [
      { name: "accuracy", weight: 1 },
      { name: "format", weight: 1 },
    ],
    trainer: {
      ...{ epochs: 1, iterations: 1, klCoef: 0, referenceEvery: 10, referenceDecay: 0.995 },
      ...{ care: { bonus: 0.5, margin: 0, cap: 0.95 }, advantageEps: 1e-4, lossAggregation: "sequence" },
    },
    optimizer: { learningRate: 1e-6, schedule: "cosine", warmupFraction: 0, weightDecay: 0.01, maxGradNorm: 5 },
    eval: { maxNewTokens: 1024, greedy: true, consistency: true },
  });
});

test("hiddenTopK shows in the resolved config, and a smaller top-k of one's own stays", () => {
  const topK = (...set: string[]) => loadConfig({ set: ["model.path=m", ...set] }).rollout.topK;
  expect(topK()).toBe(0);
  expect(topK("compat.hiddenTopK=true")).toBe(50);
  expect(topK("compat.hiddenTopK=true", "rollout.topK=80")).toBe(50);
  expect(topK("compat.hiddenTopK=true", "rollout.topK=20")).toBe(20);
  expect(topK("rollout.topK=80")).toBe(80);
});

test("docs/seed-bench-r1.md names knobs that exist", async () => {
  const { knobPaths } = await import("../../src/config/schema-tree.ts");
  const text = readFileSync(fileURLToPath(new URL("../../docs/seed-bench-r1.md", import.meta.url)), "utf8");
  const sections = new Set(knobPaths().map((knob) => knob.split(/[.[]/)[0]));
  const named = [...text.matchAll(/`([a-z]\w*\.[a-zA-Z.]+)(?:: [^`]*)?`/g)].map(([, knob]) => knob as string);
  const knobs = named.filter((knob) => sections.has(knob.split(".")[0] as string));
  expect(knobs.length).toBeGreaterThan(20);
  for (const knob of knobs)
    expect(
      knobPaths().some((path) => path === knob || path.startsWith(`${knob}[`)),
      knob,
    ).toBe(true);
});
