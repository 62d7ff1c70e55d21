import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, expect, test } from "vitest";
import { checkLayers } from "../../scripts/check-layers.mjs";

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

/** Violations of a src/ with these files. */
function check(files: Record<string, string>): string[] {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-layers-"));
  folders.push(folder);
  for (const [name, text] of Object.entries(files)) {
    const file = path.join(folder, "src", name);
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
  return checkLayers(folder).violations;
}

test("this repository is in order", () => {
  expect(checkLayers(fileURLToPath(new URL("../..", import.meta.url))).violations).toEqual([]);
});

test.each([
  ["rollout/a.ts", 'import { score } from "../reward/b.ts";', "rollout must not import reward"],
  ["reward/a.ts", 'import { Tensor } from "../torch/b.ts";', "reward must not import torch"],
  ["data/a.ts", 'import type { Tensor } from "../torch/b.ts";', "data must not import torch"],
  ["config/a.ts", 'export { x } from "../model/b.ts";', "config must not import model"],
  ["model/a.ts", 'import { grpo } from "../trainer/b.ts";', "model must not import trainer"],
  ["torch/a.ts", 'const m = await import("../model/b.ts");', "torch must not import model"],
  ["eval/a.ts", 'import { train } from "../trainer/b.ts";', "eval must not import trainer"],
  ["trainer/a.ts", 'import "../cli/b.ts";', "trainer must not import cli"],
  ["random.ts", 'import { log } from "./config/b.ts";', "a file directly in src/ must not import config"],
  ["rollout/a.ts", 'import { Tokenizer } from "../data/b.ts";', "rollout must not import data"],
  ["model/a.ts", 'import {\n  one,\n  two,\n} from "../eval/b.ts";', "model must not import eval"],
  ["video/a.ts", 'import { x } from "../torch/b.ts";', "src/video is not a layer"],
  ["cli/a.ts", 'import { x } from "../../scripts/b.ts";', "which is outside src/"],
  ["data/video.ts", 'import ffmpeg from "fluent-ffmpeg";', "only src/data/ffmpeg.ts imports fluent-ffmpeg"],
  ["model/a.ts", 'process.dlopen(m, "x");', "only src/torch/addon.ts loads the native addon"],
  ["model/a.ts", 'const a = require("../build/grove.node");', "only src/torch/addon.ts loads the native addon"],
  ["model/index.ts", "export const a = 1;", "no index.ts"],
  ["model/a.ts", "const a = 1;\n".repeat(501), "501 lines, the limit is 500"],
])("%s: %s", (file, text, problem) => {
  const violations = check({ [file]: text });
  expect(violations).toHaveLength(1);
  expect(violations[0]).toContain(`src/${file}: `);
  expect(violations[0]).toContain(problem);
});

test("what is allowed", () => {
  const files = {
    "cli/main.ts": 'import { a } from "../trainer/a.ts";\nimport { e } from "../eval/a.ts";',
    "trainer/a.ts":
      'import { e } from "../eval/a.ts";\nimport { s } from "../rollout/a.ts";\nimport { r } from "../reward/a.ts";',
    "eval/a.ts": 'import { s } from "../rollout/a.ts";\nimport type { T } from "../trainer/a.ts";',
    "rollout/a.ts":
      'import type { T } from "../data/a.ts";\nimport { type U } from "../data/a.ts";\nimport { m } from "../model/a.ts";',
    "model/a.ts":
      'import { t } from "../torch/addon.ts";\n// import { r } from "../reward/a.ts";\n/* import "../cli/main.ts" */',
    "torch/addon.ts": 'process.dlopen(m, "grove.node");\nimport { e } from "../errors.ts";',
    "data/ffmpeg.ts": 'import ffmpeg from "fluent-ffmpeg";\nimport type { C } from "../config/schema.ts";',
    "data/a.ts": 'const text = "import { r } from ../reward/a.ts";',
    "reward/a.ts": "export const r = 1;",
    "errors.ts": "export const e = 1;",
    "config/schema.ts": "export const c = 1;",
  };
  expect(check(files)).toEqual([]);
});

test("cycles are found once, type-only ones are none", () => {
  const cyclic = {
    "model/a.ts": 'import { b } from "./b.ts";',
    "model/b.ts": 'export { c } from "./c.ts";',
    "model/c.ts": 'import { a } from "./a.ts";',
  };
  expect(check(cyclic)).toEqual(["import cycle: src/model/a.ts -> src/model/b.ts -> src/model/c.ts -> src/model/a.ts"]);
  expect(check({ ...cyclic, "model/c.ts": 'import type { a } from "./a.ts";' })).toEqual([]);
});

test("long files are reported below the limit", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-layers-"));
  folders.push(folder);
  mkdirSync(path.join(folder, "src"));
  writeFileSync(path.join(folder, "src/a.ts"), "const a = 1;\n".repeat(400));
  expect(checkLayers(folder)).toEqual({ violations: [], long: ["src/a.ts: 400 lines"] });
});
