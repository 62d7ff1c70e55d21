import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { ConfigError, RewardError } from "../../src/errors.ts";
import { accuracy } from "../../src/reward/accuracy.ts";
import type { ScoredGroup } from "../../src/reward/batch.ts";
import { format } from "../../src/reward/format.ts";
import { createRewards } from "../../src/reward/rewards.ts";
import { groupOf } from "./helpers.ts";

const FILE = fileURLToPath(new URL("python/trl_style.py", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "grove-python-"));
afterAll(() => rmSync(folder, { recursive: true }));

type Options = Omit<Parameters<typeof createRewards>[0][number], "name">;

/** Scores the groups with one function of trl_style.py, as often as asked. */
async function scoreWith(name: string, groups: ScoredGroup[], options: Options = {}, calls = 1): Promise<void> {
  const rewards = createRewards([{ name: "mine", python: `${FILE}:${name}`, timeoutS: 60, ...options }]);
  try {
    for (let call = 0; call < calls; call++) await rewards.score(groups);
  } finally {
    await rewards.close();
  }
}

async function failureOf(name: string, groups: ScoredGroup[], options: Options = {}): Promise<RewardError> {
  const failure = await scoreWith(name, groups, options).then(
    () => null,
    (cause: unknown) => cause,
  );
  expect(failure).toBeInstanceOf(RewardError);
  return failure as RewardError;
}

const COMPLETIONS = [
  "<think>why</think><answer>C. put</answer>",
  "<think>why</think>\n <answer>C</answer> more",
  "<answer>C</answer>",
  "<think>why</think><answer>A</answer>",
  "<think>why</think><answer></answer>",
  "C",
  "<think>\n</think>\n<answer>\nC\n</answer>",
  "before <think>a</think><answer>Cat</answer>",
];

test("R1-V's accuracy and format rewards give what the built-in ones give", async () => {
  const solution = "<answer>C</answer>";
  const group = groupOf(COMPLETIONS, { solution });
  await scoreWith("accuracy_reward", [group]);
  expect(group.rewards).toEqual(COMPLETIONS.map((text) => accuracy(text, solution, { firstLetter: true })));
  await scoreWith("format_reward", [group]);
  expect(group.rewards).toEqual(COMPLETIONS.map(format));
});

test("a function gets chats, token ids, every column of the records and the state of the run", async () => {
  const fields = {
    domain: "kitchen",
    nested: { a: [1, null] },
    completion: "no",
    prompt: "no",
    id: "no",
    solution: "no",
  };
  const group = groupOf(["ab", "x\u2028z"], { id: "s1", solution: "<answer>C</answer>", fields });
  const rewards = createRewards([{ name: "mine", python: `${FILE}:everything` }]);
  await rewards.start();
  await rewards.score([group], { step: 4, steps: 10, epoch: 0.5, epochs: 2 });
  await rewards.close();
  expect(group.rewards).toEqual([1, 2]);
});

test("a function without **kwargs gets what it names; an object may be called too", async () => {
  const group = groupOf(["ab", "xyz"], { fields: { other: 1 } });
  await scoreWith("token_lengths", [group]);
  expect(group.rewards).toEqual([2, 3]);
  await scoreWith("judge", [group]);
  expect(group.rewards).toEqual([7, 7]);
});

test("None does not apply, also where a record lacks the field; values keep the order of the completions", async () => {
  const groups = [
    groupOf(["a", "ab"], { fields: { task: "count" } }),
    groupOf(["abc"]),
    groupOf(["abcd"], { fields: { task: "count" } }),
  ];
  await scoreWith("by_task", groups);
  expect(groups.map((group) => group.rewards)).toEqual([[1, 2], [Number.NaN], [4]]);
});

test("a field of other records is a list of None in a batch whose records all lack it", async () => {
  const group = groupOf(["abc"]);
  const rewards = createRewards([{ name: "mine", python: `${FILE}:by_task` }]);
  await rewards.score([group], undefined, ["task"]);
  await rewards.close();
  expect(group.rewards).toEqual([Number.NaN]);
});

test("numbers of any kind count; NaN is what TRL makes of None", async () => {
  const group = groupOf(["a", "b", "c", "d", "e", "f", "g"]);
  await scoreWith("numbers", [group]);
  expect(group.rewardBreakdown.mine).toEqual([1, 3, 0.5, 0.25, Number.NaN, Number.NaN, Number.NaN]);
});

test("async functions, log_metric and log_extra", async () => {
  const groups = [groupOf(["a", "abc"]), groupOf(["ab"])];
  const rewards = createRewards([{ name: "mine", python: `${FILE}:slow_judge` }]);
  await rewards.score(groups, { step: 2, steps: 5, epoch: 0, epochs: 1 });
  await rewards.close();
  expect(groups.map((group) => group.rewards)).toEqual([[3, 5], [4]]);
  const metrics = { "mine/mean_length": 5 };
  expect(groups.map((group) => group.rewardNotes)).toEqual([
    { metrics, columns: { "mine/said": ["a", "abc"], "mine/odd": [null, null] } },
    { metrics, columns: { "mine/said": ["ab"], "mine/odd": [null] } },
  ]);
});

test("what a function prints, also by its children, does not reach the protocol, and standard input is empty", async () => {
  const group = groupOf(["a", "b"]);
  await scoreWith("chatty", [group], {}, 2);
  expect(group.rewards).toEqual([1, 1]);
});

test("calls are made in the main thread, of one process", async () => {
  const group = groupOf(["a"]);
  await scoreWith("with_alarm", [group]);
  expect(group.rewards).toEqual([1]);
  await scoreWith("count_calls", [group], {}, 3);
  expect(group.rewards).toEqual([3]);
});

test.each([
  ["broken", /it failed on 2 completions of sample q: Traceback.*trl_style.py.*KeyError: 'no_such_column'/s],
  ["broken_later", /in broken_later\n(?!.*asyncio).*ValueError: later/s],
  ["wants_gold", /TypeError: the function wants gold_label; there are .*what, solution, id, prompts, completions/],
])("an exception names function, samples and line: %s", async (name, message) => {
  const failure = await failureOf(name, [groupOf(["a", "b"], { fields: { what: "x" } })]);
  expect(failure.message).toMatch(/^reward "mine": .*trl_style\.py:/);
  expect(failure.message).toMatch(message);
  expect(failure.details.path).toBe(`${FILE}:${name}`);
});

test("nonsense is an error that shows it", async () => {
  const rewards = createRewards([{ name: "mine", python: `${FILE}:odd` }]);
  for (const [what, message] of [
    ["infinite", /expected a finite number or null for completion 1 \(sample q\), got inf \(float\)/],
    ["text", /for completion 1 \(sample q\), got '1' \(str\)/],
    ["objects", /for completion 1 \(sample q\), got <class 'object'> \(type\)/],
    ["long", /expected 2 numbers, one per completion, got 3, for 2 completions of sample q/],
    ["number", /expected an array of 2 numbers, got 1.0 \(float\)/],
    ["string", /expected an array of 2 numbers, got 'ab' \(str\)/],
    ["mapping", /expected an array of 2 numbers, got \{'a': 1, 'b': 2\} \(dict\)/],
    ["nothing", /expected an array of 2 numbers, got None \(NoneType\)/],
  ] as const) {
    const failure = rewards.score([groupOf(["a", "b"], { fields: { what } })]);
    await expect(failure, what).rejects.toThrow(RewardError);
    await expect(failure, what).rejects.toThrow(message);
  }
  await rewards.close();
});

test.each([
  ["exit", /SystemExit: 3/],
  ["abort", /its process ended \(exit code 4\)\n.*last words/s],
  ["spin", /no reply within 3 s, the timeoutS of this reward, on 2 completions of sample q/],
])("a function that fails by %s is named; with onError skip it counts as not applicable and runs again", async (how, message) => {
  const fields = (flag: string) => ({ what: `${how} ${join(folder, flag)}` });
  const failure = await failureOf("end_at_first", [groupOf(["a", "b"], { fields: fields(`${how}-a`) })], {
    timeoutS: 3,
  });
  expect(failure.message).toMatch(message);
  const group = groupOf(["a", "b"], { fields: fields(`${how}-b`) });
  const rewards = createRewards([{ name: "mine", python: `${FILE}:end_at_first`, timeoutS: 3, onError: "skip" }]);
  await rewards.score([group]);
  expect(group.rewards).toEqual([Number.NaN, Number.NaN]);
  expect(group.rewardNotes).toEqual({ errors: { mine: 2 } });
  await rewards.score([group]);
  await rewards.close();
  expect(group.rewards).toEqual([5, 5]);
});

test("a function that hangs takes the processes that it has started along", async () => {
  const flag = join(folder, "hang");
  await failureOf("end_at_first", [groupOf(["a"], { fields: { what: `hang ${flag}` } })], { timeoutS: 3 });
  await gone(Number(readFileSync(flag, "utf8")));
});

test.each([
  [
    "no interpreter",
    `${FILE}:judge`,
    { interpreter: "/nowhere/python3" },
    /the program \/nowhere\/python3 cannot be started: .*ENOENT/,
  ],
  ["no Python", `${FILE}:judge`, { interpreter: "/bin/false" }, /its process ended \(exit code 1\)/],
  [
    "no such function",
    `${FILE}:acuracy_reward`,
    {},
    /could not be loaded: .*has no function acuracy_reward; did you mean accuracy_reward\?/,
  ],
  ["no function", `${FILE}:calls`, {}, /calls of .* is no function but 0 \(int\)/],
  ["a class", `${FILE}:Judge`, {}, /Judge of .* is a class: name an object made from it/],
  [
    "a missing package",
    "no_such_package.rewards:f",
    {},
    /no_such_package.rewards cannot be imported\n.*ModuleNotFoundError/s,
  ],
] as const)("what cannot be loaded is known at the start: %s", async (_what, python, options, message) => {
  const rewards = createRewards([{ name: "mine", python, ...options }]);
  const failure = await rewards.start().then(
    () => null,
    (cause: unknown) => cause,
  );
  await rewards.close();
  expect(failure).toBeInstanceOf(RewardError);
  expect((failure as RewardError).message).toMatch(message);
});

test("a missing file is refused, and an import that fails shows its line", async () => {
  expect(() => createRewards([{ name: "mine", python: "nowhere/rewards.py:f" }])).toThrow(ConfigError);
  const file = join(folder, "bad_import.py");
  writeFileSync(file, "import json\n\nraise RuntimeError('not today')\n");
  const rewards = createRewards([{ name: "mine", python: `${file}:f` }]);
  await expect(rewards.start()).rejects.toThrow(/bad_import.py", line 3, in <module>.*RuntimeError: not today/s);
  await rewards.close();
});

test("a module is found by its dotted name, from the working directory", async () => {
  writeFileSync(join(folder, "dotted.py"), "def f(completions, **_):\n    return [2.0] * len(completions)\n");
  const here = process.cwd();
  process.chdir(folder);
  try {
    const group = groupOf(["a"]);
    await scoreWith("", [group], { python: "dotted:f" });
    expect(group.rewards).toEqual([2]);
  } finally {
    process.chdir(here);
  }
});

test.each(["idle", "wait"])("the process ends with a trainer that is killed while it is %s", async (what) => {
  const pidFile = join(folder, `pid-${what}`);
  const program = join(folder, "trainer.ts");
  const at = (name: string) => JSON.stringify(new URL(`../../src/reward/${name}`, import.meta.url).href);
  const helpers = JSON.stringify(new URL("helpers.ts", import.meta.url).href);
  writeFileSync(
    program,
    `import { createRewards } from ${at("rewards.ts")};
     import { groupOf } from ${helpers};
     const rewards = createRewards([{ name: "mine", python: ${JSON.stringify(`${FILE}:write_pid`)} }]);
     const of = (what: string) => groupOf(["a"], { fields: { what } });
     rewards.score([of(${JSON.stringify(pidFile)}), of(${JSON.stringify(what)})]);
     setInterval(() => {}, 1000);`,
  );
  const trainer = spawn(process.execPath, ["--import", "tsx", program], { stdio: ["ignore", "inherit", "inherit"] });
  try {
    while (!existsSync(pidFile) || readFileSync(pidFile, "utf8") === "") await sleep(20);
    const pid = Number(readFileSync(pidFile, "utf8"));
    process.kill(pid, 0); // it lives
    trainer.kill("SIGKILL");
    await gone(pid);
  } finally {
    trainer.kill("SIGKILL");
  }
});

/** Waits until a process has ended; a zombie has. The test's own time limit is the limit. */
async function gone(pid: number): Promise<void> {
  const lives = () => existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  while (lives()) await sleep(20);
}
