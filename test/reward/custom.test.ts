import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test } from "vitest";
import { RewardError } from "../../src/errors.ts";
import { createRewards } from "../../src/reward/rewards.ts";
import { groupOf } from "./helpers.ts";

const folder = mkdtempSync(join(tmpdir(), "grove-custom-"));
afterAll(() => rmSync(folder, { recursive: true }));
let modules = 0;

/** Writes the module and scores one group of two completions with it. */
async function scoreWith(source: string, options: { timeoutS?: number; extension?: string; calls?: number } = {}) {
  const { timeoutS = 20, extension = "mjs", calls = 1 } = options;
  const path = join(folder, `reward-${modules++}.${extension}`);
  writeFileSync(path, source);
  const group = groupOf(["ab", "xyz"], {
    id: "s1",
    solution: "<answer>C</answer>",
    fields: { domain: "kitchen", id: "no" },
  });
  const rewards = createRewards([{ name: "mine", path, weight: 2, timeoutS }]);
  try {
    for (let call = 0; call < calls; call++) await rewards.score([group]);
  } finally {
    await rewards.close();
  }
  return group;
}

test("a TypeScript module gets the batch and its fields", async () => {
  const group = await scoreWith(
    `interface Args { prompts: { content: string }[][]; completions: string[]; [field: string]: unknown[] }
     export default async function score(args: Args): Promise<(number | null)[]> {
       const want = JSON.stringify({
         prompts: [[{ role: "user", content: "question s1" }], [{ role: "user", content: "question s1" }]],
         completions: ["ab", "xyz"], solution: ["<answer>C</answer>", "<answer>C</answer>"], id: ["s1", "s1"],
         lengths: [2, 3], finish: ["stop", "stop"], domain: ["kitchen", "kitchen"],
       });
       const { prompts, completions, solution, id, lengths, finish, domain } = args;
       const got = JSON.stringify({ prompts, completions, solution, id, lengths, finish, domain });
       if (got !== want) throw new Error(got + " is not " + want);
       return args.completions.map((text) => text.length);
     }`,
    { extension: "ts" },
  );
  expect(group.rewards).toEqual([4, 6]);
  expect(group.rewardBreakdown).toEqual({ mine: [2, 3] });
});

test.each([
  "module",
  "commonjs",
])("a TypeScript module of a package of type %s is loaded, with what it imports", async (type) => {
  const inside = join(folder, type);
  mkdirSync(inside);
  writeFileSync(join(inside, "package.json"), JSON.stringify({ type }));
  writeFileSync(join(inside, "bonus.ts"), "export const bonus: number = 7;");
  const path = join(inside, "mine.ts");
  writeFileSync(
    path,
    'import { bonus } from "./bonus.ts"; export default async (args: { id: string[] }) => args.id.map(() => bonus as number);',
  );
  const group = groupOf(["a", "b"]);
  const rewards = createRewards([{ name: "mine", path, weight: 1, timeoutS: 20 }]);
  await rewards.score([group]);
  await rewards.close();
  expect(group.rewards).toEqual([7, 7]);
});

test("the module is loaded once and keeps its state between calls", async () => {
  const group = await scoreWith("let calls = 0; export default () => { calls++; return [calls, null]; };", {
    calls: 3,
  });
  expect(group.rewardBreakdown).toEqual({ mine: [3, Number.NaN] });
});

test.each([
  [
    "a wrong length",
    "export default () => [1];",
    /reward "mine": .*reward-\d+.mjs: expected 2 numbers, one per completion, got 1, for 2 completions of sample s1/,
  ],
  ["no array", "export default () => 1;", /expected an array of 2 numbers, got 1,/],
  ["nothing", "export default async () => {};", /expected an array of 2 numbers, got undefined/],
  ["NaN", "export default () => [1, NaN];", /finite number or null for completion 1 \(sample s1\), got NaN/],
  ["infinity", "export default () => [-Infinity, 0];", /for completion 0 \(sample s1\), got -Infinity/],
  ["text", "export default () => [1, '1'];", /for completion 1 \(sample s1\), got '1' \(string\)/],
  [
    "a hole",
    "export default () => { const a = [1]; a.length = 2; return a; };",
    /for completion 1 \(sample s1\), got undefined/,
  ],
  [
    "an exception",
    "export default () => { throw new TypeError('no such key'); };",
    /reward "mine": .*: TypeError: no such key/s,
  ],
  ["a rejection", "export default async () => { throw 'plain words'; };", /: plain words/],
  ["a function", "export default () => [() => 1, 2];", /reward "mine": .*could not be cloned/s],
  ["an exit", "export default () => { process.exit(3); };", /ended its thread \(exit code 3\)/],
  [
    "a late exception",
    "export default () => new Promise(() => setTimeout(() => { throw new Error('late'); }, 1));",
    /: late/,
  ],
  ["no function", "export default 7;", /could not be loaded: .*default export is not a function/s],
  ["no default", "export const score = () => [1, 2];", /default export is not a function/],
  ["a syntax error", "export default (", /reward-\d+.mjs: it could not be loaded: SyntaxError/],
  ["a missing import", "import './missing.mjs'; export default () => [1, 2];", /could not be loaded: .*missing.mjs/s],
])("a function that gives %s is an error that names it", async (_what, source, message) => {
  const failure = await scoreWith(source).then(
    () => null,
    (cause: unknown) => cause,
  );
  expect(failure).toBeInstanceOf(RewardError);
  expect((failure as RewardError).message).toMatch(message);
});

test("a function that hangs or spins is stopped at its time limit", async () => {
  for (const body of ["new Promise(() => setInterval(() => {}, 1000))", "{ for (;;); }"]) {
    const start = performance.now();
    await expect(scoreWith(`export default () => ${body};`, { timeoutS: 2 })).rejects.toThrow(
      /reward "mine": .* no reply within 2 s/,
    );
    expect(performance.now() - start).toBeLessThan(12_000);
  }
}, 30_000);

test("a failed step leaves the groups as they were", async () => {
  const path = join(folder, "bad.mjs");
  writeFileSync(path, "export default () => [];");
  const group = groupOf(["<answer>A</answer>"]);
  const rewards = createRewards([
    { name: "accuracy", weight: 1, timeoutS: 1 },
    { name: "bad", path, weight: 1, timeoutS: 20 },
  ]);
  await expect(rewards.score([group])).rejects.toThrow(RewardError);
  await rewards.close();
  expect(group.rewards).toEqual([]);
  expect(group.rewardBreakdown).toEqual({});
});

test("fields that cannot be sent to the thread are an error", async () => {
  const path = join(folder, "fine.mjs");
  writeFileSync(path, "export default ({ completions }) => completions.map(() => 1);");
  const rewards = createRewards([{ name: "fine", path, weight: 1, timeoutS: 20 }]);
  await expect(rewards.score([groupOf(["a"], { fields: { call: () => 1 } })])).rejects.toThrow(
    /reward "fine": .*its arguments could not be sent/,
  );
  const group = groupOf(["a"]);
  await rewards.score([group]); // a new thread
  await rewards.close();
  expect(group.rewards).toEqual([1]);
});

test("a thread that dies between calls is reported at the next call", async () => {
  const path = join(folder, "later.mjs");
  writeFileSync(path, "export default () => { setTimeout(() => { throw new Error('too late'); }, 20); return [1]; };");
  const rewards = createRewards([{ name: "later", path, weight: 1, timeoutS: 20 }]);
  await rewards.score([groupOf(["a"])]);
  await new Promise((done) => setTimeout(done, 300));
  await expect(rewards.score([groupOf(["a"])])).rejects.toThrow(/reward "later": .*too late/);
  await rewards.close();
});

test("calls at the same time keep their own results", async () => {
  const path = join(folder, "slow.mjs");
  writeFileSync(
    path,
    "export default async ({ lengths }) => { await new Promise((r) => setTimeout(r, 30 / lengths[0])); return lengths; };",
  );
  const rewards = createRewards([{ name: "slow", path, weight: 1, timeoutS: 20 }]);
  const groups = ["a", "ab", "abc"].map((text) => groupOf([text]));
  await Promise.all(groups.map((group) => rewards.score([group])));
  await rewards.close();
  expect(groups.map((group) => group.rewards)).toEqual([[1], [2], [3]]);
});

test("a module that is loaded, and prints, does not keep the process alive; what it prints is logged", async () => {
  const path = join(folder, "chatty.mjs");
  writeFileSync(
    path,
    "console.log('geladen: ä'); process.stderr.write('half '); process.stderr.write('a line\\n'); export default () => [1];",
  );
  const program = `
    import { createRewards } from ${JSON.stringify(join(import.meta.dirname, "../../src/reward/rewards.ts"))};
    await createRewards([{ name: "chatty", path: ${JSON.stringify(path)}, weight: 1 }]).start();`;
  const args = ["--import", "tsx", "--input-type=module", "--eval", program];
  const { stdout, stderr } = await promisify(execFile)(process.execPath, args, { timeout: 60_000 });
  expect(stdout).toBe("");
  const lines = stderr.trim().split("\n");
  expect(lines.map((line) => JSON.parse(line))).toMatchObject([
    { reward: "chatty", msg: "geladen: ä" },
    { reward: "chatty", msg: "half a line" },
  ]);
}, 90_000);
