import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, expect, test } from "vitest";
import { namedBase, withNamedBase } from "../../src/config/adapter-folder.ts";
import { mergedAdapters, mergedTexts } from "../../src/config/merged-adapters.ts";
import { configSchema } from "../../src/config/schema.ts";
import { ConfigError } from "../../src/errors.ts";

const root = mkdtempSync(path.join(tmpdir(), "grove-adapter-"));
afterAll(() => rmSync(root, { recursive: true }));
const folder = (name: string, files: Record<string, unknown>) => {
  const made = path.join(root, name);
  mkdirSync(made);
  for (const [file, content] of Object.entries(files))
    writeFileSync(path.join(made, file), typeof content === "string" ? content : JSON.stringify(content));
  return made;
};
const resolved = (model: object) => withNamedBase(configSchema.parse({ model })).model;

test("an adapter's folder as the model is the model that it names with the adapter", () => {
  const base = folder("base", { "config.json": {} });
  const adapter = folder("adapter", { "adapter_config.json": { base_model_name_or_path: base } });
  expect(resolved({ path: adapter })).toMatchObject({ path: base, adapter });
  expect(resolved({ path: base })).toEqual(configSchema.parse({ model: { path: base } }).model);
  expect(resolved({ path: "not there" }).path).toBe("not there");
  expect(() => resolved({ path: adapter, adapter: "another" })).toThrow(/is an adapter, and model\.adapter is another/);
});

test("a model that the adapter does not name, or that is not there, is asked for", () => {
  const nameless = folder("nameless", { "adapter_config.json": { base_model_name_or_path: null } });
  const lost = folder("lost", { "adapter_config.json": { base_model_name_or_path: "Qwen/Qwen2-VL-7B-Instruct" } });
  const broken = folder("broken", { "adapter_config.json": "{" });
  expect(() => resolved({ path: nameless })).toThrow(/names no model; set model\.path .* and model\.adapter to/);
  expect(() => resolved({ path: lost })).toThrow(/names the model Qwen\/Qwen2-VL-7B-Instruct, which is not there/);
  expect(() => resolved({ path: broken })).toThrow(ConfigError);
});

test("a checkpoint or a run in the place of what is in it: which folder to set", () => {
  const whole = folder("whole", {});
  const model = folder("whole/model", { "config.json": {} });
  expect(() => resolved({ path: whole })).toThrow(`model.path: ${whole} is a checkpoint's or a run's folder`);
  expect(() => resolved({ path: whole })).toThrow(`with a model in it; set ${model}`);
  const checkpoint = folder("checkpoint", {});
  const adapter = folder("checkpoint/adapter", { "adapter_config.json": { base_model_name_or_path: model } });
  expect(() => resolved({ path: checkpoint })).toThrow(`with an adapter in it; set ${adapter}`);
  expect(() => resolved({ path: model, adapter: checkpoint })).toThrow(
    `model.adapter: ${checkpoint} is a checkpoint's`,
  );
  const lora = { model: { path: model }, lora: { path: checkpoint } };
  expect(() => withNamedBase(configSchema.parse(lora))).toThrow(`lora.path: ${checkpoint} is a checkpoint's`);
  const run = folder("run", {});
  expect(resolved({ path: run }).path).toBe(run); // nothing in it to name
  symlinkSync(checkpoint, path.join(run, "best"));
  expect(() => resolved({ path: run })).toThrow(`set ${path.join(run, "best", "adapter")}`);
});

test("an adapter that the model has in its weights already is refused: by the model's list of them, or by the adapter in a run's final/", () => {
  const adapter = (name: string, weights: string) =>
    folder(name, { "adapter_config.json": {}, "adapter_model.safetensors": weights });
  const own = adapter("own", "own");
  const base = folder("plain", { "config.json": {} });
  expect(resolved({ path: base, adapter: own }).adapter).toBe(own);
  const textsOf = (model: object) => mergedTexts(mergedAdapters(configSchema.parse({ model })));
  const list = textsOf({ path: base, adapter: own });
  const merged = folder("merged", {
    "config.json": {},
    ...Object.fromEntries(list.map((one) => [one.name, one.text])),
  });
  expect(() => resolved({ path: merged, adapter: own })).toThrow(
    `model.adapter: the weights of ${merged} have ${own} in them already, and it would be added twice; leave`,
  );
  const going = { model: { path: merged }, lora: { path: own } };
  expect(() => withNamedBase(configSchema.parse(going))).toThrow(`lora.path: the weights of ${merged}`);
  const other = adapter("other", "other");
  expect(resolved({ path: merged, adapter: other }).adapter).toBe(other);
  expect(resolved({ path: merged, adapter: own, init: "random" }).adapter).toBe(own); // no weight of the folder is used
  const both = textsOf({ path: merged, adapter: other })[0]?.text as string;
  expect(JSON.parse(both).adapters.map((one: { folder: string }) => one.folder)).toEqual([own, other]);
  expect(textsOf({ path: base })).toEqual([]);

  folder("lora", { "config.yaml": "" }); // a run's
  const final = folder("lora/final", { "config.json": {} });
  const last = adapter("lora/final/adapter", "step 2");
  folder("lora/checkpoint-1", {});
  const earlier = adapter("lora/checkpoint-1/adapter", "step 1");
  expect(() => resolved({ path: final, adapter: last })).toThrow("in them already");
  expect(() => resolved({ path: final, adapter: earlier })).toThrow(`${earlier} is of the run whose adapter`);
  expect(resolved({ path: final, adapter: other }).adapter).toBe(other);

  const kept = folder("kept", { "config.json": {} }); // no run's: an adapter that lies in its model's folder
  const inside = adapter("kept/adapter", "kept");
  expect(resolved({ path: kept, adapter: inside }).adapter).toBe(inside);

  writeFileSync(path.join(merged, "merged_adapters.json"), "{}");
  expect(() => resolved({ path: merged, adapter: other })).toThrow("merged_adapters.json: has no list of adapters");
});

test("adapters name the folder of their model, and none where no folder holds it", () => {
  const named = (model: object) => namedBase(configSchema.parse({ model }));
  expect(named({ path: "m" })).toBe("m");
  expect(named({ path: "m", adapter: "a" })).toBeNull();
  expect(named({ path: "m", init: "random" })).toBeNull();
});
