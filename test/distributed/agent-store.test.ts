/** Ranks whose store somebody else keeps, as torchrun's agent does: over several attempts at a job. */

import type { ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test, vi } from "vitest";
import { ProcessGroup } from "../../src/torch/distributed.ts";
import { freePort, spawnRanks } from "./spawn-ranks.ts";

vi.setConfig({ testTimeout: 300_000 });

const SCRIPT = fileURLToPath(new URL("agent-rank.ts", import.meta.url));

test("what an attempt has left in the store is not the next one's, and ranks need not have counted alike", async () => {
  const port = await freePort();
  using _store = new ProcessGroup({ rank: 0, world: 1, address: "127.0.0.1", port, nccl: false, timeoutMs: 10_000 });
  const kill = async (children: readonly ChildProcess[]) => {
    await Promise.all(children.map((child) => new Promise((resolve) => child.stdout?.once("data", resolve))));
    for (const child of children) child.kill("SIGKILL");
  };
  const killed = await spawnRanks(2, SCRIPT, [String(port), "wait"], kill);
  expect(killed.map(({ stdout }) => stdout)).toEqual(Array(2).fill('["wait 0","wait 1"]'));
  for (let attempt = 0; attempt < 2; attempt++) {
    const results = await spawnRanks(2, SCRIPT, [String(port), "leave"]);
    for (const { status, stdout, stderr } of results)
      expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: '["leave 0","leave 1"]', stderr: "" });
  }
});
