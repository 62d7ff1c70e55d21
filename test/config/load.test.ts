import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import { dumpConfig, loadConfig, parseConfig } from "../../src/config/load.ts";
import { editDistance, nearest } from "../../src/config/nearest.ts";
import { knobPaths } from "../../src/config/schema-tree.ts";
import { ConfigError } from "../../src/errors.ts";

const folder = mkdtempSync(path.join(tmpdir(), "grove-config-"));
afterAll(() => rmSync(folder, { recursive: true }));
let files = 0;

function yaml(text: string): string {
  const file = path.join(folder, `${++files}.yaml`);
  writeFileSync(file, text);
  return file;
}

function messageOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return (error as Error).message;
  }
  throw new Error("nothing was thrown");
}

const set = (...assignments: string[]) => loadConfig({ set: ["model.path=m", ...assignments] });
const refused = (...assignments: string[]) => messageOf(() => set(...assignments));

const configs = readdirSync(fileURLToPath(new URL("../../configs", import.meta.url)));
test.each(configs.filter((name) => name.endsWith(".yaml")))("configs/%s loads", (name) => {
  const at = (file: string) => fileURLToPath(new URL(`../../configs/${file}`, import.meta.url));
  const needsBase = /^quickstart-/.test(name);
  const config = loadConfig({ files: needsBase ? [at("quickstart.yaml"), at(name)] : [at(name)] });
  expect(config.model.path).not.toBe("");
  expect(config.data.train.length + Object.keys(config.data.eval).length).toBeGreaterThan(0);
});

test("later files win, sections and records merge, lists replace", () => {
  const first = yaml(`
model: { path: a, freezeVision: true }
data:
  train: [{ file: one, format: generic }, { file: two, format: generic }]
  eval: { L1: { file: l1, format: generic } }
trainer: { klCoef: 0.5, steps: 7 }
`);
  const second = yaml(`
model: { path: b }
data:
  train: [{ file: three, format: generic }]
  eval: { L2: { file: l2, format: generic } }
trainer: { steps: 9 }
`);
  const config = loadConfig({
    files: [first, second],
    set: ["trainer.steps=11"],
    flags: { seed: 5, device: undefined },
  });
  expect(config.model).toMatchObject({ path: "b", freezeVision: true });
  expect(config.data.train.map(({ file }) => file)).toEqual(["three"]);
  expect(Object.keys(config.data.eval)).toEqual(["L1", "L2"]);
  expect(config.trainer).toMatchObject({ klCoef: 0.5, steps: 11 });
  expect([config.seed, config.device]).toEqual([5, "cpu"]);
});

test("--set takes YAML values, list items, record keys, and null for the default", () => {
  expect(set("trainer.klCoef=0.04").trainer.klCoef).toBe(0.04);
  expect(set("rewards=[{name: accuracy}, {name: format, weight: 0.2}]").rewards.map(({ weight }) => weight)).toEqual([
    1, 0.2,
  ]);
  expect(set("rewards.0.weight=2").rewards).toMatchObject([{ name: "accuracy", weight: 2 }]);
  expect(set("rewards[0].weight=3").rewards).toMatchObject([{ name: "accuracy", weight: 3 }]);
  const evaluated = set(
    "data.eval.L1={file: a, format: generic}",
    "data.eval.L1.limit=3",
    "data.eval.x-y.file=b",
    "data.eval.x-y.format=generic",
  );
  expect(evaluated.data.eval).toEqual({
    L1: { file: "a", format: "generic", limit: 3 },
    "x-y": { file: "b", format: "generic" },
  });
  expect(set("trainer.steps=4", "trainer.steps=null").trainer.steps).toBeUndefined();
  expect(set("runDir=runs/a=b").runDir).toBe("runs/a=b");
  expect(set("model.freezeVision=true").model.freezeVision).toBe(true);
});

test.each([
  ["trainer.klCof=1", "did you mean trainer.klCoef?"],
  ["trainer.kl_coef=1", "did you mean trainer.klCoef?"],
  ["klCoef=1", "did you mean trainer.klCoef?"],
  ["trainr.steps=1", "did you mean trainer?"],
  ["num_generations=8", "did you mean rollout.groupSize?"],
  ["actor_rollout_ref.rollout.n=8", "did you mean rollout.groupSize?"],
  ["data.eval.L1.fil=x", "did you mean data.eval.L1.file?"],
  ["rewards.0.wieght=2", "did you mean rewards.0.weight?"],
  ["optimizer.learningrate=1", "did you mean optimizer.learningRate?"],
  ["zzzzzzzz=1", "docs/config.md lists every knob"],
  ["__proto__.polluted=1", "unknown knob __proto__"],
  ["seed.x=1", "unknown knob seed.x"],
])("unknown knob: --set %s", (assignment, hint) => {
  const message = refused(assignment);
  expect(message).toContain(`--set ${assignment}`);
  expect(message).toContain(hint);
  expect(({} as Record<string, unknown>).polluted).toBeUndefined();
});

test("a misspelt knob in a file is reported with file, line and nearest name", () => {
  const file = yaml("model:\n  path: m\ntrainer:\n  steps: 3\n  qestionsPerStep: 2\n");
  expect(messageOf(() => loadConfig({ files: [file] }))).toBe(
    `${file}:5: unknown knob trainer.qestionsPerStep; did you mean trainer.questionsPerStep?`,
  );
  const inList = yaml("model: { path: m }\nrewards:\n  - name: accuracy\n    wait: 1\n");
  expect(messageOf(() => loadConfig({ files: [inList] }))).toContain(`${inList}:4: unknown knob rewards.0.wait`);
});

test("wrong values name where they were set, all at once", () => {
  const file = yaml("model: { path: m }\ntrainer:\n  klCoef: -1\ndata:\n  train:\n    - file: x\n      format: sed\n");
  const message = messageOf(() => loadConfig({ files: [file], flags: { device: "gpu" } }));
  expect(message).toContain(`${file}:3: trainer.klCoef`);
  expect(message).toContain(`${file}:7: data.train.0.format`);
  expect(message).toContain("--device gpu: device: cpu, cuda or cuda:N");
  expect(messageOf(() => loadConfig({}))).toContain("model: is required but was not set");
});

test("files that cannot be read or parsed", () => {
  expect(messageOf(() => loadConfig({ files: ["/no/such.yaml"] }))).toBe("/no/such.yaml: no such config file");
  const broken = yaml("model:\n  path: [unclosed\n");
  expect(messageOf(() => loadConfig({ files: [broken] }))).toMatch(/\.yaml:\d+: not valid YAML/);
  const lost = yaml("seed: *seed\n");
  expect(messageOf(() => loadConfig({ files: [lost] }))).toMatch(/\.yaml: not valid YAML: Unresolved alias/);
  expect(messageOf(() => loadConfig({ set: ["data={train: [}"] }))).toMatch(
    /not valid YAML: Flow .* line 1, column 10$/,
  );
  expect(messageOf(() => loadConfig({ files: [yaml("- a\n- b\n")] }))).toContain("got a list");
  expect(loadConfig({ files: [yaml("")], set: ["model.path=m"] }).seed).toBe(42);
  expect(refused("novalue")).toContain("expected path=value");
  expect(refused("data.train.1.file=x")).toContain("leaves a gap");
  expect(set("lora.targets.0=q_proj").lora?.targets).toEqual(["q_proj"]); // a list that has no default begins empty
  expect(refused("trainer=3")).toContain("trainer");
});

test.each([
  [["data.minFrames=8", "data.maxFrames=4"], "data.minFrames: 8 is more than maxFrames, 4"],
  [["data.resizedHeight=56"], "data.resizedWidth: a fixed size needs both"],
  [["rewards=[{name: mine}]"], "rewards.0.path: mine is not one of accuracy, format, math"],
  [["rewards=[{name: format}, {name: format}]"], "rewards.1.name: format is listed twice"],
  [["rewards.0.weight=0"], "every weight is 0"],
  [["rewards=[{name: std, path: a.ts}]"], "rewards.0.name: reward/std is the name of another metric"],
  [["rewards=[{name: a, path: a.ts, url: 'http://b/c'}]"], "rewards.0.url: a function is in one place: path or url"],
  [["rewards=[{name: a, python: a.py}]"], "rewards.0.python: a.py names no function: expected file.py:function"],
  [["rewards=[{name: a, url: 'b:80'}]"], "rewards.0.url: b:80 is no address of a server"],
  [["rewards=[{name: format, interpreter: python3}]"], "rewards.0.interpreter: only a python function has one"],
  [["rewards=[{name: a, url: 'http://b', call: completion}]"], "rewards.0.call: completion is for modules"],
  [["rollout.topP=0"], "rollout.topP: 0 leaves no token"],
  [["rewards.0.timeoutS=1e9"], "rewards.0.timeoutS: expected number to be <=2000000"],
  [["eval.topP=0"], "eval.topP: 0 leaves no token"],
  [["optimizer.beta2=1"], "optimizer.beta2: expected number to be <1"],
  [
    ["rollout.temperature=1e-46"],
    "rollout.temperature: expected 1e-30 to 1e30, which float32 can divide by, got 1e-46",
  ],
  [["eval.temperature=1e39"], "eval.temperature: expected 1e-30 to 1e30, which float32 can divide by, got 1e+39"],
  [
    ["eval.temperature=0"],
    "eval.temperature: expected a number above 0; for the likeliest token at each place set eval.greedy: true",
  ],
  [
    ["rewards=[{name: acuracy}]"],
    "rewards.0.path: acuracy is not one of accuracy, format, math, consistency; did you mean accuracy?",
  ],
  [["trainer.evalEvery=5"], "trainer.evalEvery: evaluation during training needs data.eval"],
  [["tinyModel.heads=3"], "tinyModel.hiddenSize: must be a multiple of heads"],
  [["rendered.sftVideos=99999"], "rendered.sftVideos: 99999 is more than"],
])("knobs that contradict each other: %j", (assignments, message) => {
  expect(refused(...assignments)).toContain(message);
});

test("a dumped config reads back to the same config", () => {
  const config = set(
    "data.eval.L1={file: a, format: generic}",
    "rewards=[{name: accuracy, weight: 2}]",
    "trainer.steps=3",
  );
  expect(parseConfig(dumpConfig(config), "config.yaml")).toEqual(config);
  expect(dumpConfig(config)).toContain("klCoef: 0.1");
});

test("edit distance is a metric, and a transposition is one edit", () => {
  expect(editDistance("steps", "stesp")).toBe(1);
  expect(editDistance("", "abc")).toBe(3);
  fc.assert(
    fc.property(fc.string({ maxLength: 8 }), fc.string({ maxLength: 8 }), (a, b) => {
      expect(editDistance(a, b)).toBe(editDistance(b, a));
      expect(editDistance(a, b) === 0).toBe(a === b);
      expect(editDistance(a, b)).toBeLessThanOrEqual(Math.max(a.length, b.length));
    }),
  );
  expect(nearest("qqqqqq", ["steps", "epochs"])).toBeUndefined();
});

test("every knob survives one typing error", () => {
  for (const knob of knobPaths().filter((path) => !/[<[]/.test(path))) {
    const last = knob.split(".").at(-1) as string;
    if (last.length < 5) continue; // too short for one error to leave it recognisable
    const misspelt = knob.slice(0, -2) + knob.slice(-1); // the last letter but one is missing
    expect(refused(`${misspelt}=1`), misspelt).toContain(`did you mean ${knob}?`);
  }
});
