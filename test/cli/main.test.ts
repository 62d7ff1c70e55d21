import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeEach, expect, test, vi } from "vitest";
import { commandNames, main } from "../../src/cli/main.ts";
import { renderError } from "../../src/cli/render-error.ts";
import { parseConfig } from "../../src/config/load.ts";
import { AddonError, ConfigError, DataError, NativeError } from "../../src/errors.ts";
import { captureOutput } from "./capture.ts";

const folder = mkdtempSync(path.join(tmpdir(), "grove-cli-"));
afterAll(() => rmSync(folder, { recursive: true }));

const { out, err } = captureOutput();
beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation((text) => void process.stdout.write(`${text}\n`)); // yargs prints its help with it
});

test("--help names every command", async () => {
  expect(await main(["--help"])).toBe(0);
  for (const name of commandNames) expect(out.text).toContain(`grove ${name}`);
});

test.each(commandNames)("%s --help", async (name) => {
  expect(await main([name, "--help"])).toBe(0);
  expect(out.text).toContain(`grove ${name}`);
  if (["sweep", "ablation"].includes(name)) return; // their --config is an experiment's file
  if (name === "compare") return; // reads the folders of evaluations, no config
  for (const flag of ["--config", "--set", "--device", "--dtype", "--seed", "--run-dir", "--dry-run"])
    expect(out.text).toContain(flag);
  if (["grpo", "sft"].includes(name)) expect(out.text).toContain("--resume");
});

test("--dry-run prints a config that reads back", async () => {
  const file = path.join(folder, "a.yaml");
  writeFileSync(file, "model: { path: m }\nseed: 1\ntrainer: { klCoef: 0.5 }\n");
  const flags = [
    "--config",
    file,
    "--set",
    "trainer.steps=3",
    "--set",
    "rollout.topK=5",
    "--seed",
    "7",
    "--device",
    "cuda:1",
    "--run-dir",
    "r",
  ];
  expect(await main(["grpo", "--dry-run", ...flags])).toBe(0);
  const config = parseConfig(out.text, "dry-run");
  expect(config).toMatchObject({
    seed: 7,
    device: "cuda:1",
    runDir: "r",
    trainer: { klCoef: 0.5, steps: 3 },
    rollout: { topK: 5 },
  });
});

test("the quickstart's stages have knobs of their own and live below its folder", async () => {
  const flags = [
    "--run-dir",
    "r",
    "--set",
    "sft.trainer.steps=3",
    "--set",
    "grpo.trainer.steps=5",
    "--set",
    "data.fps=1",
    "--seed",
    "9",
  ];
  expect(await main(["quickstart", "--dry-run", ...flags])).toBe(0);
  const [sft, grpo] = out.text.split("# grpo\n").map((text) => parseConfig(text, "dry-run"));
  expect(sft).toMatchObject({
    seed: 9,
    runDir: "r/sft",
    trainer: { steps: 3 },
    model: { path: "r/model", init: "random" },
    data: { fps: 1 },
  });
  expect(grpo).toMatchObject({
    seed: 9,
    runDir: "r/grpo",
    trainer: { steps: 5 },
    model: { path: "r/sft/final", init: "pretrained" },
  });
  expect(Object.keys(grpo?.data.eval ?? {})).toEqual(["L1", "L2", "L3"]);
});

test.each([
  [["gpro"], "Unknown command: gpro; did you mean grpo?"],
  [["foo"], "Unknown command: foo.\n"],
  [["grpo", "extra"], "Unknown argument: extra.\n"],
  [[], "Name a command."],
  [["grpo", "--confg", "x"], "Unknown argument: --confg; did you mean --config?"],
  [["sweep", "-c", "a", "--retry-faild"], "--retry-faild; did you mean --retry-failed?"],
  [
    ["grpo", "--no-dryrun", "-x", "--zzz=1"],
    "--dryrun; did you mean --dry-run?\nUnknown argument: -x.\nUnknown argument: --zzz.",
  ],
  [["grpo", "--trainer.steps", "3"], "--trainer.steps; did you mean --set trainer.steps=...?"],
  [["grpo", "--set", "model.path=m", "--seed", "abc"], "--seed abc: expected a number."],
  [["sweep", "-c", "a", "--trials=many"], "--trials many: expected a number."],
  [["grpo", "--set", "trainer.klCof=1"], "did you mean trainer.klCoef?"],
  [["grpo", "--set", "model.path=m"], "data.train is empty"],
  [["eval", "--set", "model.path=m"], "data.eval is empty"],
  [["grpo", "--config", "/no/such.yaml"], "/no/such.yaml: no such config file"],
  [
    ["eval", "--set", "model.path=/no/such", "--set", "data.eval.L1={file: x, format: generic}"],
    "error [CHECKPOINT] /no/such: no such folder",
  ],
  [["eval", "--set", "model.path=m", "--limit", "-2"], "--limit must be a whole number above 0"],
  [["eval", "--set", "model.path=m", "--limit", "2", "--limit", "3"], "--limit is given more than once."],
  [["score", "--set", "model.path=m", "--input", "a", "--input", "b"], "--input is given more than once."],
  [["grpo", "--run-dir", "a", "--run-dir", "b"], "--run-dir is given more than once."],
  [["sweep", "-c", "a", "-c", "b"], "is given more than once."],
  [["grpo", "--set", "model.path=m", "--max-restarts", "1.5"], "--max-restarts must be a whole number that is 0 or"],
  [["sft", "--set", "model.path=m", "--json-window", "0"], "--json-window must be a whole number above 0"],
  [["compare", "--a", "x", "--b", "y", "--show", "-1"], "--show must be a whole number that is 0 or more"],
  [
    ["generate", "--set", "model.path=m", "--input", "c", "--video", "v.mp4"],
    "--video and --image belong to --question",
  ],
  [["generate", "--set", "model.path=m"], "generate needs --input or --question"],
  [["generate", "--set", "model.path=m", "--question", "q", "--count", "2"], "eval.greedy=false"],
  [["score", "--set", "model.path=m", "--input", "/no/such.jsonl"], "/no/such.jsonl: no such file"],
  [["inspect", "--set", "model.path=m"], "output"],
  [["sft", "--resume", "--overwrite", "--set", "model.path=m"], "mutually exclusive"],
])("%j fails with one readable message", async (args, message) => {
  expect(await main(args as string[])).toBe(1);
  expect(err.text).toContain(message);
  expect(err.text).not.toMatch(/\n\s+at /);
});

test.each([
  ['{"messages": 3}', ':2 (sample 2): field "messages" must be a list of chat messages, got 3'],
  ["not json", ":2: malformed JSON"],
  ['{"messages": [{"role": "user", "content": "x"}]}', ":2 (sample 2): the last message must be the assistant's"],
  [
    '{"messages": [{"role": "user", "content": [{"type": "sound"}]}]}',
    ":2 (sample 2): messages[0].content[0] must be a text, image or video part",
  ],
])("score refuses line 2 being %s", async (line, message) => {
  const file = path.join(folder, "chats.jsonl");
  const good = '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}';
  writeFileSync(file, `${good}\n${line}\n`);
  expect(await main(["score", "--set", "model.path=m", "--input", file])).toBe(1);
  expect(err.text).toContain(`error [DATA] ${file}${message}`);
});

test("errors of ours are one message with code, causes and hint; others keep their stack", () => {
  expect(renderError(new ConfigError("trainer.steps: too small"))).toBe(
    "error [CONFIG] trainer.steps: too small\n  hint: docs/config.md lists every knob; --dry-run prints the resolved config",
  );
  const data = new DataError({ file: "a.jsonl", line: 3 }, "cannot be read", new Error("disk on fire"));
  expect(renderError(data)).toBe("error [DATA] a.jsonl:3: cannot be read\n  caused by: disk on fire");
  expect(renderError(new NativeError("add", "[2], [3]", new Error("sizes differ")))).toBe(
    "error [NATIVE] add([2], [3]): sizes differ",
  );
  expect(renderError(new AddonError("not built"))).toContain("npm run setup");
  expect(renderError(new ConfigError("x", { hint: "do y" }))).toContain("hint: do y");
  const refused = Object.assign(new Error("EACCES: permission denied, mkdir '/x'"), {
    code: "EACCES",
    errno: -13,
    syscall: "mkdir",
  });
  expect(renderError(refused)).toBe("error [EACCES] permission denied, mkdir '/x'");
  expect(renderError(new TypeError("bug"))).toContain("main.test.ts");
  expect(renderError("text")).toBe("thrown: text");
});

test("what the README tells to type exists", () => {
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const scripts = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")).scripts as Record<
    string,
    string
  >;
  const used = [...readme.matchAll(/npm run ([\w-]+)/g)].map((match) => match[1] as string);
  expect(used.length).toBeGreaterThan(5);
  for (const name of used) expect(scripts, name).toHaveProperty(name);
});
