import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, expect, test } from "vitest";
import { withNamedBase } from "../../src/config/adapter-folder.ts";
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
