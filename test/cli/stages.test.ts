import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, expect, test } from "vitest";
import { Stages } from "../../src/cli/stages.ts";

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

function newFolder(): string {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-stages-"));
  folders.push(folder);
  return folder;
}

/** Runs two stages in a new process's place; returns what was done. */
async function runBoth(folder: string, knobs: [unknown, unknown]) {
  const done: string[] = [];
  const stages = new Stages(folder, () => {});
  const results = [
    await stages.run("first one", knobs[0], async ({ begun }) => {
      done.push(`first ${begun}`);
      return { value: 1 };
    }),
    await stages.run("second", knobs[1], async ({ begun }) => {
      done.push(`second ${begun}`);
      return { value: 2 };
    }),
  ];
  return { done, results, seconds: Object.keys(stages.seconds) };
}

test("a finished stage is skipped while its knobs and all before it stay the same", async () => {
  const folder = newFolder();
  expect((await runBoth(folder, [1, 2])).done).toEqual(["first false", "second false"]);
  const again = await runBoth(folder, [1, 2]);
  expect(again).toEqual({ done: [], results: [{ value: 1 }, { value: 2 }], seconds: ["first one", "second"] });
  expect((await runBoth(folder, [1, 3])).done).toEqual(["second false"]);
  expect((await runBoth(folder, [9, 3])).done).toEqual(["first false", "second false"]);
});

test("a stage that was interrupted goes on; a halted one keeps the later ones from running", async () => {
  const folder = newFolder();
  const crash = new Stages(folder, () => {});
  await expect(crash.run("first one", 1, () => Promise.reject(new Error("killed")))).rejects.toThrow("killed");
  expect((await runBoth(folder, [1, 2])).done).toEqual(["first true", "second false"]);

  const said: string[] = [];
  const halting = new Stages(newFolder(), (line) => said.push(line));
  expect(await halting.run("first one", 1, async () => halting.halt("stopped by a signal"))).toBeUndefined();
  expect(await halting.run("second", 2, async () => expect.unreachable())).toBeUndefined();
  expect([halting.halted, said]).toEqual([true, ["first one: starting", "stopped by a signal"]]);
});

test("a damaged record means: run it again", async () => {
  const folder = newFolder();
  await runBoth(folder, [1, 2]);
  writeFileSync(path.join(folder, "first-one.json"), "{");
  expect((await runBoth(folder, [1, 2])).done).toEqual(["first false"]);
});
