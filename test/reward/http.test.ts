import { type ChildProcess, spawn } from "node:child_process";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { RewardError } from "../../src/errors.ts";
import { createRewards } from "../../src/reward/rewards.ts";
import { groupOf } from "./helpers.ts";

const FILE = fileURLToPath(new URL("python/trl_style.py", import.meta.url));
const SERVE = fileURLToPath(new URL("../../src/reward/bridge/serve.py", import.meta.url));

let python: ChildProcess;
let address = ""; // of serve.py, with a slash behind
const functions: string[] = [];

beforeAll(async () => {
  python = spawn("python3", ["-u", SERVE, "--http", "0", FILE, `${FILE}:judge`], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  for await (const line of createInterface({ input: python.stdout as NonNullable<ChildProcess["stdout"]> })) {
    const served = /^serving (http:\/\/127\.0\.0\.1:\d+\/)(\w+)$/.exec(line);
    if (served === null) continue;
    address = served[1] as string;
    functions.push(served[2] as string);
    if (served[2] === "write_pid") break;
  }
});
afterAll(() => void python.kill());

let server: Server | undefined;
afterEach(async () => {
  server?.closeAllConnections();
  await new Promise((done) => (server === undefined ? done(null) : server.close(done)));
  server = undefined;
});

/** A server of our own in this process. Returns its address. */
async function serve(
  answer: (request: IncomingMessage, response: ServerResponse, body: string) => void,
): Promise<string> {
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => answer(request, response, body));
  });
  await new Promise<void>((done) => server?.listen(0, "127.0.0.1", done));
  return `http://127.0.0.1:${(server?.address() as AddressInfo).port}/rewards`;
}

test("serve.py offers a file's functions that take completions, and gives what the child process gives", async () => {
  expect(functions).toEqual(expect.arrayContaining(["accuracy_reward", "format_reward", "slow_judge", "judge"]));
  expect(functions).not.toContain("everything"); // it names no completions
  const make = () => [groupOf(["<answer>C</answer>", "x"], { solution: "<answer>C</answer>" }), groupOf(["abc"])];
  const over = async (where: { url: string } | { python: string }, name: string) => {
    const groups = make();
    const rewards = createRewards([{ name: "mine", ...where }]);
    await rewards.start();
    await rewards.score(groups, { step: 3, steps: 9, epoch: 0, epochs: 1 });
    await rewards.close();
    return groups.map(({ rewards, rewardNotes }) => ({ name, rewards, rewardNotes }));
  };
  for (const name of ["accuracy_reward", "format_reward", "slow_judge", "judge", "with_alarm"]) {
    expect(await over({ url: address + name }, name)).toEqual(await over({ python: `${FILE}:${name}` }, name));
  }
});

test("several functions are asked at the same time, and their values stay in order", async () => {
  const texts = Array.from({ length: 40 }, (_, i) => "x".repeat(40 - i));
  const group = groupOf(texts, { fields: { task: "count" } });
  const rewards = createRewards([
    { name: "async", url: `${address}slow_judge` },
    { name: "plain", url: `${address}by_task` },
    { name: "child", python: `${FILE}:token_lengths` },
  ]);
  await rewards.score([group]);
  await rewards.close();
  const lengths = texts.map((text) => text.length);
  expect(group.rewardBreakdown).toEqual({ async: lengths, plain: lengths, child: lengths });
});

test("a function that is not served is known at the start, and one that fails is not asked again", async () => {
  const wrong = createRewards([{ name: "mine", url: `${address}acuracy` }]);
  await expect(wrong.start()).rejects.toThrow(/there is no function acuracy; there are accuracy_reward, /);
  const rewards = createRewards([{ name: "mine", url: `${address}broken` }]);
  const failure = rewards.score([groupOf(["a"], { id: "s7" })]);
  await expect(failure).rejects.toThrow(RewardError);
  await expect(failure).rejects.toThrow(
    /^reward "mine": http.*\/broken: it failed on 1 completion of sample s7: Traceback.*KeyError/s,
  );
  await rewards.close();
});

test("a server that cannot just now is asked again, with the same request", async () => {
  const bodies: string[] = [];
  const url = await serve((_request, response, body) => {
    bodies.push(body);
    if (bodies.length === 1) return response.destroy();
    response.statusCode = bodies.length === 2 ? 503 : 200;
    response.end(JSON.stringify({ rewards: [0.5, null] }));
  });
  const group = groupOf(["a", "b"]);
  const rewards = createRewards([{ name: "mine", url, retries: 2 }]);
  await rewards.score([group]);
  await rewards.close();
  expect(group.rewards).toEqual([0.5, Number.NaN]);
  expect(bodies).toHaveLength(3);
  expect(new Set(bodies).size).toBe(1);
});

test.each([
  ["always 503", { retries: 1 }, (r: ServerResponse) => r.writeHead(503).end(), /no answer in 2 attempts: status 503/],
  ["500 in plain words", {}, (r: ServerResponse) => r.writeHead(500).end("oh no"), /answered with status 500: oh no/],
  ["no JSON", {}, (r: ServerResponse) => r.end("<html>"), /its answer cannot be used: .*JSON/],
  [
    "other JSON",
    {},
    (r: ServerResponse) => r.end('{"scores": [1]}'),
    /expected \{"rewards": \[...\]\}, got \{"scores": \[1\]\}/,
  ],
  ["too few", {}, (r: ServerResponse) => r.end('{"rewards": []}'), /expected 1 numbers, one per completion, got 0/],
  ["text", {}, (r: ServerResponse) => r.end('{"rewards": ["1"]}'), /for completion 0 \(sample q\), got '1' \(string\)/],
  ["nothing", { timeoutS: 1 }, () => {}, /no reply within 1 s, the timeoutS of this reward/],
])("a server that answers %s is an error that names it", async (_what, options, answer, message) => {
  const url = await serve((_request, response) => void answer(response));
  const rewards = createRewards([{ name: "mine", url, ...options }]);
  const failure = rewards.score([groupOf(["a"])]);
  await expect(failure).rejects.toThrow(RewardError);
  await expect(failure).rejects.toThrow(message);
  await rewards.close();
});

test("no server: an error at the start; any answer to a GET will do", async () => {
  const url = await serve((_request, response) => response.writeHead(405).end());
  const there = createRewards([{ name: "mine", url }]);
  await there.start();
  await there.close();
  server?.closeAllConnections();
  await new Promise((done) => server?.close(done));
  server = undefined;
  const rewards = createRewards([{ name: "mine", url, retries: 1 }]);
  await expect(rewards.start()).rejects.toThrow(/no answer in 2 attempts: ECONNREFUSED/);
  await rewards.close();
});

test("closing ends a call that is under way", async () => {
  let asked = () => {};
  const waiting = new Promise<void>((done) => {
    asked = done;
  });
  const url = await serve(() => asked());
  const rewards = createRewards([{ name: "mine", url }]);
  const failure = expect(rewards.score([groupOf(["a"])])).rejects.toThrow(/closed before it replied/);
  await waiting;
  await rewards.close();
  await failure;
});
