import { expect, test } from "vitest";
import { type Config, configSchema } from "../../src/config/schema.ts";
import { packGroups } from "../../src/model/packed.ts";
import { releasedConfig } from "../../src/model/qwen2vl/released.ts";
import type { PackSize } from "../../src/trainer/activations.ts";
import { largestPack } from "../../src/trainer/plan.ts";
import { cheapestThatFits, describePlan, recomputeChoices, roomBeside } from "../../src/trainer/recompute-plan.ts";
import { RecomputePlanner } from "../../src/trainer/recompute-planner.ts";
import { randomGroup, tinyConfig } from "../model/support.ts";

const shape = releasedConfig("7B");
const config = (recompute: Config["model"]["recompute"], freezeVision = false): Config =>
  configSchema.parse({ model: { path: "unused", recompute, freezeVision }, device: "cuda" });
const pack: PackSize = largestPack("grpo", config("auto"), shape, { prompt: 931, vision: 729, completion: 256 });
const GIB = 2 ** 30;

test("auto goes from nothing to whole layers, each step dearer and smaller", () => {
  const choices = recomputeChoices(pack, config("auto"), shape);
  expect(choices[0]).toMatchObject({ plan: { text: "none", vision: "none" }, share: 0 });
  expect(choices.at(-1)?.plan.text).toBe("layer");
  expect(choices.at(-1)?.share).toBeGreaterThan(1);
  choices.slice(1).forEach((choice, i) => {
    expect(choice.bytes).toBeLessThan(choices[i]?.bytes as number);
    expect(choice.share).toBeGreaterThanOrEqual(choices[i]?.share as number);
  });
  // norms cost about a hundredth of a forward; gate and up again over half of one
  const text = choices.filter(({ plan }) => plan.vision === "none" || plan.vision === "norms");
  expect(text.find(({ plan }) => plan.text === "norms")?.share).toBeLessThan(0.05);
  expect(text.find(({ plan }) => plan.text === "mlp")?.share).toBeGreaterThan(0.5);
});

test("the cheapest that fits is taken; where none does, the smallest", () => {
  const choices = recomputeChoices(pack, config("auto"), shape);
  expect(cheapestThatFits(choices, choices[0].bytes)).toBe(choices[0]);
  for (let i = 1; i < choices.length; i++)
    expect(cheapestThatFits(choices, (choices[i - 1]?.bytes as number) - 1)).toBe(choices[i]);
  expect(cheapestThatFits(choices, 0)).toBe(choices.at(-1));
  const bytes = choices[0].bytes;
  expect(roomBeside.room(5 * GIB, roomBeside.device(5 * GIB, bytes))).toBeCloseTo(bytes, -1);
});

test("what a setting forbids is not chosen, and a frozen tower has nothing to compute again", () => {
  const plans = (recompute: Config["model"]["recompute"], freezeVision = false) =>
    recomputeChoices(pack, config(recompute, freezeVision), shape).map(({ plan }) => plan);
  expect(plans("none")).toEqual([{ text: "none", vision: "none" }]);
  expect(plans("layer")).toEqual([{ text: "layer", vision: "layer" }]);
  for (const { text, vision } of plans("selective")) {
    expect(["norms", "mlp"]).toContain(text);
    expect(["norms", "mlp"]).toContain(vision);
  }
  expect(plans("auto", true)).toEqual(["none", "norms", "mlp", "layer"].map((text) => ({ text, vision: "none" })));
});

test("a planner goes by the pack and by what is free just then", () => {
  const tiny = tinyConfig();
  const groups = [randomGroup(tiny, 1, { videos: [[4, 8, 8]], completions: [40, 40] })];
  const packed = packGroups(groups);
  let room = Number.POSITIVE_INFINITY;
  const planner = new RecomputePlanner(config("auto"), tiny, () => room);
  expect(planner.for(packed)).toEqual({ text: "none", vision: "none" });
  room = 1;
  const least = planner.for(packed);
  expect(least.text === "layer" || least.vision === "layer").toBe(true);
  const fixed = new RecomputePlanner(config("layer"), tiny, () => {
    throw new Error("nothing to ask for");
  });
  expect(fixed.for(packed)).toEqual({ text: "layer", vision: "layer" });
});

test("a plan in words", () => {
  expect(describePlan({ text: "none", vision: "none" })).toBe("nothing");
  expect(describePlan({ text: "none", vision: "norms" })).toBe("language model nothing, vision tower norms");
});
