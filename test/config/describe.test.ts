import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { aliases, knobCalled } from "../../src/config/aliases.ts";
import { configReference, describeKnobs } from "../../src/config/describe.ts";
import { knobPaths } from "../../src/config/schema-tree.ts";

test("docs/config.md is what the schema says", () => {
  const file = fileURLToPath(new URL("../../docs/config.md", import.meta.url));
  expect(readFileSync(file, "utf8")).toBe(configReference());
});

test("every knob has a description, a type and a default", () => {
  for (const { path, description, type, default: fallback } of describeKnobs()) {
    expect(description, path).not.toBe("");
    expect(type, path).not.toBe("");
    expect(fallback, path).not.toBe("");
  }
});

test("knobs of each kind", () => {
  const knobs = new Map(describeKnobs().map((knob) => [knob.path, knob]));
  expect(knobs.get("trainer.klCoef")).toMatchObject({ type: "number ≥ 0", default: "`0.1`" });
  expect(knobs.get("rollout.topP")).toMatchObject({ type: "number, above 0 to 1", default: "`1`" });
  expect(knobs.get("optimizer.beta1")?.type).toBe("number, 0 to below 1");
  expect(knobs.get("optimizer.warmupFraction")?.type).toBe("number, 0 to 1");
  expect(knobs.get("model.path")).toMatchObject({ type: "string", default: "required" });
  expect(knobs.get("trainer.ratio")).toMatchObject({ type: "`token`, `sequence`", default: "by loss" });
  expect(knobs.get("trainer.steps")).toMatchObject({ type: "integer > 0", default: "none" });
  expect(knobs.get("rewards")).toMatchObject({ type: "list", default: "`[{name: accuracy}]`" });
  expect(knobs.get("model.recompute")?.type).toBe("`auto`, `none`, `selective`, `layer`");
  expect(knobs.get("rollout.groupSize")?.elsewhere).toBe("TRL `num_generations`, verl `actor_rollout_ref.rollout.n`");
});

test("every name from elsewhere belongs to a knob that exists", () => {
  const paths = new Set(knobPaths());
  for (const knob of Object.keys(aliases)) expect(paths, knob).toContain(knob);
  expect(knobCalled("beta")).toBe("trainer.klCoef");
  expect(knobCalled("algorithm.unknown")).toBeUndefined();
});
