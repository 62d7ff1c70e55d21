import { expect, test } from "vitest";
import { loadConfig } from "../../src/config/load.ts";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { knobPaths } from "../../src/config/schema-tree.ts";
import { releasedConfig } from "../../src/model/qwen2vl/released.ts";
import { fitOf, type Planned, remediesFor } from "../../src/trainer/memory-fit.ts";
import { memoryPlan } from "../../src/trainer/memory-text.ts";
import { memoryParts, parameterCount } from "../../src/trainer/plan.ts";
import { stateBytes } from "../../src/trainer/sharded-memory.ts";

const GIB = 2 ** 30;
const seven = releasedConfig("7B");
const two = releasedConfig("2B");
const config = (more: object = {}): Config =>
  configSchema.parse({ model: { path: "unused" }, device: "cuda", ...more });
const planned = (more: Partial<Planned> = {}): Planned => ({
  ...{ stage: "grpo", config: config(), shape: seven, size: { prompt: 849, vision: 729, completion: 256 } },
  ...{ ranks: 1, device: null },
  ...more,
});
const sharded = { shardGradients: true, shardReference: true };

test("ranks share the optimizer; with the knobs gradients and reference too, beside a place for whole layers", () => {
  const one = stateBytes(config(), seven, 1);
  const eight = stateBytes(config(), seven, 8);
  expect(eight.weights).toBeGreaterThanOrEqual(one.weights);
  expect(eight.weights / one.weights).toBeLessThan(1.0001); // parts are filled up
  expect(eight.gradients).toBe(eight.weights);
  expect(eight.optimizer * 8).toBe((eight.weights / 2) * 10);
  expect(eight.reference).toBe(one.reference);
  const cut = stateBytes(config({ distributed: sharded }), seven, 8);
  const head = Math.ceil((152_065 * 3584) / 2048) * 2048 * 2; // with the last norm the largest; two layers are smaller
  expect(cut.gradients - eight.gradients / 8).toBe(head);
  expect(cut.reference - eight.gradients / 8).toBe(head);
  // one rank: nothing to share with
  expect(stateBytes(config({ distributed: sharded }), seven, 1)).toEqual(one);
});

test("a tied embedding has a place of its own beside two layers'; a frozen tower is not cut up with the gradients", () => {
  const flat = stateBytes(config(), two, 2).gradients;
  const cut = stateBytes(config({ distributed: sharded }), two, 2).gradients;
  const layer = 1536 * (12 + 4) * 128 + (12 + 4) * 128 + 1536 * 1536 + 3 * 1536 * 8960 + 2 * 1536;
  expect(cut - flat / 2).toBe(2 * (151_936 * 1536 + 2 * layer));
  const frozen = config({ model: { path: "unused", freezeVision: true }, distributed: sharded });
  const states = [frozen, config({ distributed: sharded })].map((some) => stateBytes(some, seven, 8));
  expect((states[1]?.gradients as number) - (states[0]?.gradients as number)).toBeCloseTo((675_759_104 * 2) / 8, -6);
  expect(states[0]?.reference).toBe(states[1]?.reference);
});

test("moments on the host are counted there, of each rank", () => {
  const away = config({ optimizer: { offload: "cpu" } });
  const [one, four] = [stateBytes(away, seven, 1), stateBytes(away, seven, 4)];
  expect(one.host).toBe(8_291_375_616 * 8);
  expect(four.host / (one.host / 4)).toBeCloseTo(1, 4);
  expect(four.optimizer - (one.host / 4) * (2 / 8)).toBeCloseTo(3 * 2 ** 25 * 8, -7); // low bits, and three stages
});

test("eight A100-40GB hold the seed's 7B run as configs/8xa100.yaml has it, and not without shared gradients and reference", () => {
  const file = loadConfig({ files: ["configs/8xa100.yaml"] });
  const at = (some: Config) => planned({ config: some, ranks: 8, device: 40 * GIB });
  expect(fitOf(at(file)).verdict).toBe("fits");
  const whole = { ...file, distributed: { ...file.distributed, shardGradients: false, shardReference: false } };
  expect(fitOf(at(whole)).verdict).toBe("cannot");
  expect(remediesFor(at(whole)).map(({ text }) => text)).toEqual([
    "distributed.shardGradients: true and distributed.shardReference: true",
  ]);
  const { refusal, lines } = memoryPlan(at(whole), "--device-memory");
  expect(refusal).toMatchObject({ code: "MEMORY", details: { ranks: 8, deviceGib: 40 } });
  expect(refusal?.message).toMatch(
    /^each of 8 ranks needs [\d.]+ GiB on cuda, \+- [\d.]+, and --device-memory has 40\.00/,
  );
  expect(refusal?.details.hint).toMatch(/^it fits with distributed\.shardGradients: true and distributed\.shardR/);
  expect(lines.find((line) => line.startsWith("does not fit 40.00 GiB"))).toBeDefined();
});

test("a reference is there, and can be shared, where there is a KL penalty or a bonus, moving or not", () => {
  const size = { prompt: 849, vision: 729, completion: 256 };
  const referenceOf = (trainer: object) =>
    memoryParts("grpo", config({ trainer }), seven, size).find(({ name }) => name === "reference")?.bytes;
  expect(referenceOf({ klCoef: 0 })).toBeUndefined();
  expect(referenceOf({ klCoef: 0, care: { bonus: 0.5 } })).toBe(2 * parameterCount(seven));
  for (const trainer of [{ referenceEvery: 10 }, { klCoef: 0, care: { bonus: 0.5 }, referenceEvery: 10 }]) {
    const named = remediesFor(planned({ config: config({ trainer }), ranks: 8, device: 60 * GIB }));
    expect(named.map(({ text }) => text).join()).toContain("distributed.shardReference: true");
  }
  const none = config({ trainer: { klCoef: 0 } });
  const named = remediesFor(planned({ config: none, ranks: 8, device: 45 * GIB })).map(({ text }) => text);
  expect(named.length).toBeGreaterThan(0);
  expect(named.join()).not.toContain("shardReference");
});

test("GRPO-CARE's config fits eight A100-40GB", () => {
  const file = loadConfig({ files: ["configs/8xa100-care.yaml"] });
  const vision = 9 * 8 * 15; // eight pairs of frames and an image, 224 x 420
  const care = { prompt: vision + 120, vision, completion: file.rollout.maxNewTokens };
  expect(fitOf(planned({ config: file, ranks: 8, device: 40 * GIB, size: care })).verdict).toBe("fits");
  const whole = { ...file, distributed: { ...file.distributed, shardReference: false } };
  expect(fitOf(planned({ config: whole, ranks: 8, device: 40 * GIB, size: care })).verdict).not.toBe("fits");
});

test("the SFT config of eight A100-40GB fits", () => {
  const file = loadConfig({ files: ["configs/8xa100-sft.yaml"] });
  expect(fitOf(planned({ stage: "sft", config: file, ranks: 8, device: 40 * GIB })).verdict).toBe("fits");
});

test.each([
  ["one GPU of 80 GiB", 1, 80, {}, "optimizer.offload: cpu"],
  [
    "two GPUs of 60 GiB",
    2,
    60,
    { optimizer: { moments: "int8" } },
    "distributed.shardGradients: true and distributed.shardReference: true",
  ],
  [
    "no recomputation asked for",
    8,
    70,
    { model: { path: "x", recompute: "none" } },
    "distributed.shardGradients: true",
  ],
] as const)("%s: each remedy fits when it is applied, knobs first", (_, ranks, gib, more, first) => {
  const at = planned({ config: config(more), ranks, device: gib * GIB });
  expect(fitOf(at).verdict).not.toBe("fits");
  const remedies = remediesFor(at);
  expect(remedies[0]?.text).toBe(first);
  for (const { text, needs } of remedies) {
    expect(needs).toBeLessThan(gib * GIB);
    for (const part of text.split(" and ")) {
      if (/^\d+ GPUs$/.test(part)) continue;
      expect(knobPaths()).toContain(part.split(":")[0]);
    }
  }
});

test("where neither knobs nor as many GPUs as there are questions do, an adapter does, with what else it takes", () => {
  const at = planned({ config: config({ trainer: { questionsPerStep: 1 } }), device: 30 * GIB });
  expect(fitOf(at).verdict).toBe("cannot");
  const [remedy, ...others] = remediesFor(at);
  expect(others).toEqual([]);
  expect(remedy?.text).toMatch(/^lora\.rank: 16( and |$)/);
  expect(remedy?.needs).toBeLessThan(30 * GIB);
  const lora = { ...at, config: config({ trainer: { questionsPerStep: 1 }, lora: { rank: 16 } }), device: 10 * GIB };
  expect(remediesFor(lora)).toEqual([]);
  expect(remediesFor({ ...at, stage: "eval", device: 10 * GIB })).toEqual([]);
});

test("packs that are too large: tokensPerPack is named, with the size of one group", () => {
  const large = config({
    model: { path: "x", recompute: "layer" },
    trainer: { questionsPerStep: 64, tokensPerPack: 200_000 },
    optimizer: { moments: "int8" },
  });
  const small = { ...large, trainer: { ...large.trainer, tokensPerPack: 2897 } };
  const { needs } = fitOf(planned({ config: small }));
  const remedies = remediesFor(planned({ config: large, device: needs * 1.1 }));
  expect(remedies.map(({ text }) => text)).toContain("trainer.tokensPerPack: 2897");
});

test("steps of a fixed number of rows that are too many: maxConcurrent is named", () => {
  const many = config({ rollout: { deterministic: true, maxConcurrent: 60_000 }, optimizer: { moments: "int8" } });
  const few = { ...many, rollout: { ...many.rollout, maxConcurrent: 64 } };
  const device = fitOf(planned({ config: few })).needs * 1.1;
  expect(fitOf(planned({ config: many, device })).verdict).not.toBe("fits");
  expect(remediesFor(planned({ config: many, device })).map(({ text }) => text)).toContain("rollout.maxConcurrent: 64");
});

test("prompts that are not known: what is certainly there decides, or nothing does", () => {
  const at = planned({ size: null });
  expect(fitOf({ ...at, device: 200 * GIB }).verdict).toBe("unknown");
  expect(fitOf({ ...at, device: 60 * GIB }).verdict).toBe("cannot");
  expect(memoryPlan({ ...at, device: 60 * GIB }, "x").refusal?.message).toMatch(/alone need [\d.]+ GiB/);
});

test("completions that may be shorter: refused is only what does not fit with the shortest", () => {
  const long = config({ optimizer: { offload: "cpu" }, rollout: { maxNewTokens: 8192 } });
  const size = { prompt: 849, vision: 729, completion: 8192 };
  const at = planned({ config: long, size, device: 80 * GIB });
  expect(fitOf(at).verdict).toBe("cannot");
  const shortest = { ...size, completion: 1 };
  const { lines, refusal } = memoryPlan({ ...at, shortest }, "this machine");
  expect(refusal).toBeNull();
  expect(lines.find((line) => line.startsWith("may not fit 80.00 GiB"))).toMatch(/needs 9\d\./);
  expect(lines.some((line) => line.startsWith("  it fits with "))).toBe(true);
  expect(fitOf({ ...at, shortest, device: 40 * GIB }).verdict).toBe("cannot");
});

test("nothing helps a model that is too large whatever is done", () => {
  const at = planned({ shape: releasedConfig("72B"), device: 10 * GIB });
  expect(remediesFor(at)).toEqual([]);
  expect(memoryPlan(at, "x").refusal?.details.hint).toMatch(/^no knob that was tried makes it fit/);
});

test("the CPU's memory is no hard limit: it is said, not refused", () => {
  const at = planned({ config: config({ device: "cpu" }), device: 8 * GIB });
  const { lines, refusal } = memoryPlan(at, "this machine");
  expect(refusal).toBeNull();
  expect(lines.some((line) => line.startsWith("does not fit 8.00 GiB"))).toBe(true);
});
