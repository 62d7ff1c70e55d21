/** docs/rewards.md: its examples run, its config loads, its keys and defaults are the schema's, its wire format is what is sent. */

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parse } from "yaml";
import { describeKnobs } from "../src/config/describe.ts";
import { configSchema } from "../src/config/schema.ts";
import { batchOf } from "../src/reward/batch.ts";
import { parseReply, requestOf } from "../src/reward/bridge/wire.ts";
import { createRewards } from "../src/reward/rewards.ts";
import { groupOf } from "./reward/helpers.ts";

const text = readFileSync(fileURLToPath(new URL("../docs/rewards.md", import.meta.url)), "utf8");
const blocks = (language: string) =>
  [...text.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)].flatMap(([, of, body]) =>
    of === language ? [body as string] : [],
  );
const folder = mkdtempSync(path.join(tmpdir(), "grove-rewards-doc-"));
const at = (name: string) => path.join(folder, name);
afterAll(() => rmSync(folder, { recursive: true }));

beforeAll(() => {
  mkdirSync(at("rewards"));
  for (const source of [...blocks("ts"), ...blocks("python")]) {
    const name = /^(?:\/\/|#) (\S+)\n/.exec(source)?.[1] as string;
    writeFileSync(at(name), source);
  }
});

test("the config loads", () => {
  const [yaml] = blocks("yaml");
  expect(configSchema.parse({ model: { path: "m" }, ...parse(yaml as string) }).rewards).toHaveLength(4);
});

test("the examples score", async () => {
  const rewards = createRewards([
    { name: "brevity", path: at("rewards/brevity.ts") },
    { name: "judge", path: at("rewards/judge.ts"), call: "completion" },
    { name: "seed", python: `${at("rewards/seed.py")}:accuracy_reward` },
    { name: "patient", python: `${at("rewards/seed.py")}:patient` },
  ]);
  const right = "<answer>B, why not</answer>";
  const groups = ["essay", "kitchen"].map((domain) =>
    groupOf([right, ""], { solution: "<answer>B.</answer>", fields: { domain, question: "what" } }),
  );
  await rewards.score(groups, { step: 1, steps: 4, epoch: 0, epochs: 1 });
  await rewards.close();
  const none = Number.NaN;
  const same = { judge: [1, 0], seed: [1, 0], patient: [0.5, none] };
  expect(groups.map((group) => group.rewardBreakdown)).toEqual([
    { brevity: [none, none], ...same },
    { brevity: [0, 1], ...same },
  ]);
  expect(groups[0]?.rewardNotes).toEqual({
    metrics: { "judge/words": 2, "patient/done": 0.25 },
    columns: { "judge/verdict": ["good", "bad"] },
  });
});

test("every key of a function, with its default", () => {
  const rows = [...text.matchAll(/^\| `(\w+)` \| (.*?) \| .*? \| .*? \|$/gm)].map(([, key, fallback]) => [
    key,
    fallback?.replaceAll("`", "").trim(),
  ]);
  const knobs = describeKnobs().filter(({ path }) => path.startsWith("rewards[]."));
  const expected = knobs.map(({ path, default: fallback }) => {
    const shown = fallback.replaceAll("`", "");
    return [path.slice("rewards[].".length), shown];
  });
  expect(Object.fromEntries(rows)).toEqual(Object.fromEntries(expected));
});

test("the wire format", () => {
  const [request, reply] = blocks("json") as [string, string];
  const sample = groupOf(["..."], { id: "q1", solution: "<answer>B.</answer>", fields: { domain: "kitchen" } });
  const sent = requestOf(batchOf([sample], { step: 0, steps: 100, epoch: 0, epochs: 1 }));
  const shape = (value: unknown): unknown =>
    Array.isArray(value)
      ? value.slice(0, 1).map(shape)
      : typeof value === "object" && value !== null
        ? Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, shape(inner)]))
        : typeof value;
  expect(shape(sent)).toEqual(shape(JSON.parse(request)));
  expect(parseReply(reply)).toEqual({ values: [1], metrics: { length: 12 }, columns: { verdict: ["good"] } });
});
