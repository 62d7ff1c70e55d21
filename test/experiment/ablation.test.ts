import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeEach, expect, test } from "vitest";
import YAML from "yaml";
import { loadConfig } from "../../src/config/load.ts";
import { type AblationOptions, runAblation } from "../../src/experiment/ablation.ts";
import { ablationText, writeAblationResults } from "../../src/experiment/ablation-report.ts";
import { readAblation } from "../../src/experiment/ablation-spec.ts";
import { ablationTables } from "../../src/experiment/ablation-tables.ts";
import { FAKE, makePlace, slots } from "./helpers.ts";

const place = makePlace();
afterAll(() => rmSync(place.folder, { recursive: true }));
beforeEach(() => rmSync(path.join(place.folder, "starts"), { force: true }));

function write(name: string, changes: object = {}): string {
  const file = path.join(place.folder, `${name}.yaml`);
  const spec = {
    config: path.join(place.folder, "base.yaml"),
    set: { "data.eval": { L1: { file: "none", format: "generic" } }, "optimizer.learningRate": 1e-3 },
    runDir: path.join(place.folder, name),
    seeds: [1, 2, 3],
    metrics: ["reward/accuracy"],
    window: 1,
    curves: ["reward/accuracy"],
    evaluate: true,
    variants: { plain: { set: { "trainer.klCoef": 0.02 } }, strong: { set: { "trainer.klCoef": 0.1 } } },
    ...changes,
  };
  writeFileSync(file, YAML.stringify(spec));
  return file;
}
const run = (file: string, options: Partial<AblationOptions> = {}) => {
  const signal = new AbortController().signal;
  return runAblation(readAblation(file), { program: FAKE, slots: slots(2), signal, ...options });
};
const starts = () => place.starts().sort();

test("variants with every seed: figures, intervals, tests, curves, and the exact configs", async () => {
  const file = write("whole");
  const { jobs, finished } = await run(file);
  expect(finished).toBe(true);
  const ablation = readAblation(file);
  const [accuracy, reward] = ablationTables(ablation, jobs);
  expect(accuracy?.metric).toBe("accuracy L1");
  const [plain, strong] = accuracy?.rows ?? [];
  expect(plain).toMatchObject({ variant: "plain", mean: expect.closeTo(0.9), against: null });
  expect(strong?.mean).toBeCloseTo(0.5);
  expect(strong?.against).toMatchObject({ difference: expect.closeTo(-0.4), pSeeds: null });
  // 48 of 120 questions are right by plain alone, none by strong alone.
  expect(strong?.against?.questions).toMatchObject({ n: 120, p: expect.closeTo(2 ** -47, 16) });
  expect(strong?.against?.questions?.high).toBeLessThan(-0.3);
  // By the metric a seed adds 0.001 x seed to every variant: the differences are all the same but for rounding.
  expect(reward?.rows[1]?.against?.difference).toBeCloseTo(1 / 1.2 - 1 / 1.04, 8);
  expect(reward?.rows[0]?.interval?.[0]).toBeCloseTo(1 / 1.04 + 0.012 - 4.302653 * (0.001 / Math.sqrt(3)), 6);
  expect(ablationText(ablation, accuracy === undefined ? [] : [accuracy])).toMatch(/strong +3 +0\.5 +/);

  const kept = loadConfig({ files: [path.join(place.folder, "whole", "variant-strong", "seed-2.yaml")] });
  expect(kept).toMatchObject({ seed: 2, trainer: { klCoef: 0.1 }, optimizer: { learningRate: 1e-3 } });
  expect(readdirSync(path.join(place.folder, "whole", "variant-strong", "seed-2"))).toEqual(["metrics.jsonl"]); // evaluated, then dropped
  const files = writeAblationResults(ablation, jobs, ablationTables(ablation, jobs));
  const page = readFileSync(files[1] as string, "utf8");
  expect(page.match(/opacity="0.15"/g)).toHaveLength(2); // a band for each variant
  expect(page).not.toMatch(/<script|<link|src=/);

  writeFileSync(path.join(place.folder, "whole", "notes.txt"), "mine");
  const stopped = AbortSignal.abort();
  await run(file, { overwrite: true, signal: stopped });
  const left = readdirSync(path.join(place.folder, "whole")).filter((name) => !name.startsWith("variant-"));
  expect(left.sort()).toEqual(["experiment.json", "journal.jsonl", "notes.txt"]);
});

test("with eval.consistency: how often answers follow from their reasoning, of all and of the right ones", async () => {
  const set = { "data.eval": { L1: { file: "none", format: "generic" } }, "eval.consistency": true };
  const file = write("reasons", { set, metrics: [] });
  const { jobs } = await run(file);
  const tables = ablationTables(readAblation(file), jobs);
  expect(tables.map(({ metric }) => metric)).toEqual(["accuracy L1", "consistency L1", "consistency of right ones L1"]);
  const [, all, right] = tables;
  expect(all?.rows.map(({ mean }) => mean)).toEqual([0.75, 0.75]);
  expect(all?.rows[1]?.against).toMatchObject({ difference: 0, questions: { n: 120, p: 1 } });
  const ofRight = (share: number, seed: number) => {
    const numbers = Array.from({ length: 40 }, (_, i) => i).filter((i) => ((i * 17 + seed * 3) % 40) / 40 < share);
    return numbers.filter((i) => i % 4 > 0).length / numbers.length;
  };
  for (const [row, share] of [
    [right?.rows[0], 0.9],
    [right?.rows[1], 0.5],
  ] as const) {
    for (const seed of [1, 2, 3]) expect(row?.values[seed]).toBeCloseTo(ofRight(share, seed), 12);
    expect(row?.against?.questions ?? null).toBeNull();
  }
});

test("an adapter that is part of the base is merged once: not again into what was trained over it", async () => {
  const own = { from: "sft", set: { "model.adapter": "another" } };
  const variants = { vanilla: { command: "none" }, sft: { command: "sft" }, grpo: { from: "sft" }, own };
  const set = { "data.eval": { L1: { file: "none", format: "generic" } }, "model.adapter": "adapter" };
  const file = write("over an adapter", { seeds: [1], metrics: [], variants, set });
  const adapters = readAblation(file).jobs.map(({ variant, config }) => [variant, config.model.adapter]);
  expect(Object.fromEntries(adapters)).toEqual({ vanilla: "adapter", sft: "adapter", grpo: undefined, own: "another" });
  const { jobs } = await run(file);
  expect(jobs.map(({ status, reason }) => reason ?? status)).toEqual(["finished", "finished", "finished", "finished"]);
});

test("an adapter that all variants go on from is not gone on from by those that start from another's model", () => {
  const own = { from: "sft", set: { "lora.path": "another" } };
  const variants = { sft: { command: "sft" }, grpo: { from: "sft" }, own, whole: { from: "sft", set: { lora: null } } };
  const set = { lora: { rank: 4, path: "adapter" } };
  const file = write("from an adapter", { seeds: [1], variants, set, evaluate: false });
  const lora = Object.fromEntries(readAblation(file).jobs.map(({ variant, config }) => [variant, config.lora]));
  const paths = Object.entries(lora).map(([variant, knobs]) => [variant, knobs && [knobs.rank, knobs.path]]);
  expect(Object.fromEntries(paths)).toEqual({
    ...{ sft: [4, "adapter"], grpo: [4, undefined], own: [4, "another"] },
    whole: undefined,
  });
});

test("before any run has ended there is nothing to show", () => {
  const ablation = readAblation(write("nothing yet"));
  expect(ablationText(ablation, ablationTables(ablation, []))).toBe("no run has ended");
});

test("pictures: every variant's mean and seeds, and figures over a knob", async () => {
  const variant = (command: string, klCoef: number) => ({ command, set: { "trainer.klCoef": klCoef } });
  const file = write("drawn", {
    against: "trainer.klCoef",
    seeds: [1, 2],
    variants: {
      vanilla: { command: "none" },
      "grpo-a": variant("grpo", 0.02),
      "grpo-b": { ...variant("grpo", 0.1), base: "grpo-a" },
      "sft-a": variant("sft", 0.02),
    },
  });
  const { jobs } = await run(file);
  const ablation = readAblation(file);
  const [accuracy] = ablationTables(ablation, jobs);
  const [vanilla, first, second] = accuracy?.rows ?? [];
  expect(vanilla?.against).toBeNull();
  expect(first?.against?.base).toBe("vanilla");
  expect(second?.against?.base).toBe("grpo-a");
  expect(second?.against?.difference).toBeCloseTo((second?.mean ?? 0) - (first?.mean ?? 0), 12);
  expect(ablationText(ablation, accuracy === undefined ? [] : [accuracy])).toMatch(/grpo-b .* to grpo-a /);
  const written = writeAblationResults(ablation, jobs, ablationTables(ablation, jobs));
  const read = (name: string) => {
    const svg = readFileSync(written.find((one) => one.endsWith(`${name}.svg`)) as string, "utf8");
    expect(svg).not.toMatch(/NaN|undefined|Infinity/);
    return svg;
  };
  const intervals = read("intervals");
  expect(intervals.match(/<circle/g)).toHaveLength(4 + 2); // accuracy of all, reward where there is one
  for (const name of ablation.variants) expect(intervals).toContain(`>${name}</text>`);
  const against = read("against");
  expect(against).toContain(">trainer.klCoef</text>");
  expect(against).toMatch(/stroke-dasharray[^>]*>\s*<text[^>]*>vanilla</);
  expect(against.match(/>0\.02<\/text>/g)).toHaveLength(2); // an x of points is marked in either panel
  expect(read("curves")).toContain(">grpo-b</text>");
  expect(() => readAblation(write("none", { against: "trainer.dualClip" }))).toThrow(
    /against: no variant has a number at trainer\.dualClip/,
  );
  const unknown = { ...variant("grpo", 0.1), base: "grpo-c" };
  expect(() => readAblation(write("none", { variants: { a: {}, b: unknown } }))).toThrow(
    /variants\.b\.base names an unknown/,
  );
});

test("a metric that one kind of run has and another has not", async () => {
  const variants = { sft: { command: "sft" }, grpo: { from: "sft" } };
  const file = write("mixed", { seeds: [1], variants, metrics: ["reward/accuracy", "loss/sft"] });
  const { jobs } = await run(file);
  const tables = ablationTables(readAblation(file), jobs);
  expect(tables.map(({ metric, rows }) => [metric, rows.map(({ variant }) => variant)])).toEqual([
    ["accuracy L1", ["sft", "grpo"]],
    ["reward/accuracy", ["grpo"]],
    ["loss/sft", ["sft"]],
  ]);
  const wrong = readAblation(write("mixed", { seeds: [1], variants, metrics: ["reward/acuracy"] }));
  expect(() => ablationTables(wrong, jobs)).toThrow(/no metric reward\/acuracy; did you mean reward\/accuracy\?/);
});

test("stopped, gone on with, extended, and never made twice", async () => {
  const file = write("stopped", { seeds: [1, 2] });
  const stop = new AbortController();
  const first = await run(file, { signal: stop.signal, slots: slots(1), onJob: () => stop.abort() });
  expect(first.finished).toBe(false);
  expect(starts()).toEqual(["stopped/variant-plain/seed-1", "stopped/variant-plain/seed-1-eval"]);
  expect((await run(file)).jobs.every(({ status }) => status === "finished")).toBe(true);
  expect(new Set(starts()).size).toBe(8);
  expect(starts()).toHaveLength(8);
  const variants = { plain: { set: { "trainer.klCoef": 0.02 } }, strong: { set: { "trainer.klCoef": 0.1 } } };
  await run(write("stopped", { variants: { ...variants, none: { command: "none" } }, seeds: [1, 2, 3] }));
  expect(starts()).toHaveLength(8 + 4 + 3);
  const changed = { ...variants, strong: { set: { "trainer.klCoef": 0.2 } } };
  await expect(run(write("stopped", { variants: changed }))).rejects.toThrow(
    /strong with seed 1 was run with another config[\s\S]*klCoef: 0.1 -> 0.2/,
  );
});

test("a variant starts from the model that another one trained with the same seed", async () => {
  const variants = { after: { from: "before" }, before: { command: "sft" } };
  const file = write("chain", { variants, base: "before", seeds: [1, 2], evaluate: false });
  await run(file);
  const order = place.starts();
  for (const seed of [1, 2])
    expect(order.indexOf(`chain/variant-before/seed-${seed}`)).toBeLessThan(
      order.indexOf(`chain/variant-after/seed-${seed}`),
    );
  const after = loadConfig({ files: [path.join(place.folder, "chain", "variant-after", "seed-2.yaml")] });
  expect(after.model).toMatchObject({
    path: path.join(place.folder, "chain", "variant-before", "seed-2", "final"),
    init: "pretrained",
  });
});

test("a variant that is added later starts from a model that was dropped: that is trained once more", async () => {
  const before = { command: "sft" };
  await run(write("later", { seeds: [1], variants: { before }, metrics: ["loss/sft"] }));
  expect(existsSync(path.join(place.folder, "later", "variant-before", "seed-1", "final"))).toBe(false);
  const file = write("later", { seeds: [1], variants: { before, after: { from: "before" } } });
  const { jobs } = await run(file);
  expect(jobs.map(({ status }) => status)).toEqual(["finished", "finished"]);
  expect(place.starts()).toEqual([
    ...["later/variant-before/seed-1", "later/variant-before/seed-1-eval"],
    ...["later/variant-before/seed-1", "later/variant-after/seed-1", "later/variant-after/seed-1-eval"],
  ]);
  await run(file);
  expect(place.starts()).toHaveLength(5);
});

test("an evaluation that is asked for later", async () => {
  const variants = { plain: {} };
  await run(write("asked", { seeds: [1], variants, evaluate: false }));
  const { jobs } = await run(write("asked", { seeds: [1], variants, evaluate: true }));
  expect(jobs.map(({ status, reason }) => [status, reason])).toEqual([["finished", undefined]]);
});

test("what a file gets wrong is said before anything starts", () => {
  const message = (changes: object) => {
    try {
      readAblation(write("wrong", changes));
    } catch (error) {
      return (error as Error).message;
    }
    return "";
  };
  expect(message({ variants: { a: { set: { "trainer.klCof": 0 } } } })).toMatch(
    /variants\.a: .*unknown knob trainer\.klCof; did you mean trainer\.klCoef/,
  );
  expect(message({ base: "plan" })).toContain("base names an unknown variant plan; did you mean plain?");
  expect(message({ variants: { a: { from: "b" }, b: { from: "a" } } })).toContain(
    "starts, over others, from its own model",
  );
  expect(message({ metrics: [], evaluate: false })).toContain("name metrics to compare, or set evaluate");
  expect(message({ variants: { a: { command: "none" } }, evaluate: false })).toContain("trains nothing");
  expect(message({ variants: { "a/b": {} } })).toContain("names are made of letters");
  expect(place.starts()).toEqual([]);
});
