/** Whose rank, or whose run, a process is: what it starts itself inherits its environment and is neither. */

import { spawnSync } from "node:child_process";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, expect, test, vi } from "vitest";
import { asRanks } from "../../src/cli/ranks.ts";
import { configSchema } from "../../src/config/schema.ts";
import { LAUNCHER, ownPlace, starterOf } from "../../src/distributed/starter.ts";
import { EXPERIMENT } from "../../src/experiment/run.ts";

afterEach(() => vi.unstubAllEnvs());
const PLACE = { GROVE_RANK: "1", GROVE_WORLD_SIZE: "2", GROVE_LOCAL_RANK: "1", GROVE_LOCAL_WORLD_SIZE: "2" };
const ADDRESS = { GROVE_MASTER_ADDR: "127.0.0.1", GROVE_MASTER_PORT: "9" };
const stub = (env: Record<string, string>) => {
  for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
};

test("whoever has started a process is its parent, or has ended; another process that lives has not", () => {
  stub({ ...PLACE, ...ADDRESS });
  expect(starterOf(LAUNCHER)).toBeUndefined();
  expect(ownPlace()).toMatchObject({ rank: 1, world: 2 }); // by hand
  stub({ [LAUNCHER]: String(process.ppid) });
  expect(starterOf(LAUNCHER)).toBe(process.ppid);
  expect(ownPlace()).toMatchObject({ rank: 1, world: 2 });
  const { pid: ended } = spawnSync("true");
  stub({ [LAUNCHER]: String(ended) });
  expect(starterOf(LAUNCHER)).toBe(ended);
  stub({ [LAUNCHER]: String(process.pid) });
  expect(starterOf(LAUNCHER)).toBeUndefined();
  expect(ownPlace()).toBeNull();
});

test("a command inside a rank is a run of its own", async () => {
  stub({ ...PLACE, ...ADDRESS, GROVE_RANK: "0", GROVE_WORLD_SIZE: "1", [LAUNCHER]: String(process.pid) });
  const config = configSchema.parse({ model: { path: "m" }, device: "cpu" });
  const worlds: number[] = [];
  await asRanks(config, {}, async ({ ranks }) => void worlds.push(ranks.world));
  expect(worlds).toEqual([1]);
});

test("a command inside a rank, or inside a run of an experiment, is not ended as theirs is", () => {
  const main = path.resolve(fileURLToPath(import.meta.url), "../../../src/cli/main.ts");
  const args = ["--import", "tsx", main, "eval", "--set", "model.path=m"];
  for (const more of [
    { ...PLACE, ...ADDRESS, [LAUNCHER]: String(process.ppid) },
    { [EXPERIMENT]: String(process.ppid) },
  ]) {
    const { status, stderr } = spawnSync(process.execPath, args, {
      env: { ...process.env, ...more },
      encoding: "utf8",
    });
    expect(stderr).toContain("data.eval is empty");
    expect(status).toBe(1);
  }
});
