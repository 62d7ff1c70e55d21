/** A kernel that does not end is found out beside a host that waits for it, or lives; a long queue and a wait for another GPU are not. */

import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { cudaAvailable } from "../../src/torch/cuda.ts";
import { hasGpusFor } from "../torch/gpus.ts";
import { type RankResult, spawnRanks } from "./spawn-ranks.ts";

const SCRIPT = fileURLToPath(new URL("stall-device.ts", import.meta.url));

test.skipIf(!cudaAvailable()).each(["hang", "hang-beside"])(
  "%s: the process says that the GPU stands still, and ends",
  async (what) => {
    const [alone] = (await spawnRanks(1, SCRIPT, [what])) as [RankResult];
    expect(alone.status).toBe(1);
    expect(alone.stderr).toMatch(
      /^error \[STALL\] in step 5, update for \d+ s: no progress within the limit of 4\.000 s .*: the GPU has done nothing for [4-9] s: a kernel does not end; last operator aten::\w+/m,
    );
  },
);

test.skipIf(!cudaAvailable())("a queue that takes longer than the limit is worked off", async () => {
  const [alone] = (await spawnRanks(1, SCRIPT, ["queue"])) as [RankResult];
  expect({ status: alone.status, stderr: alone.stderr }).toEqual({ status: 0, stderr: "" });
  expect(Number(alone.stdout)).toBeGreaterThan(1);
});

test.skipIf(!hasGpusFor(2))(
  "of two GPUs the one whose kernel hangs is to blame, not the one that waits for it",
  async () => {
    const [other, victim] = (await spawnRanks(2, SCRIPT, ["hang"])) as [RankResult, RankResult];
    expect([other.status, victim.status]).toEqual([1, 1]);
    expect(victim.stderr).toMatch(/^error \[STALL\] rank 1 of 2, in step 5, update .*: the GPU has done nothing/m);
    expect(other.stderr).toMatch(/error \[COLLECTIVE\] rank 0 of 2, .*: rank 1 has failed, in step 5, update/);
  },
);

test.skipIf(!hasGpusFor(2))("a GPU that waits for a slow one goes on", async () => {
  const results = await spawnRanks(2, SCRIPT, ["queue"]);
  expect(results.map(({ status, stderr }) => ({ status, stderr }))).toEqual(Array(2).fill({ status: 0, stderr: "" }));
  for (const { stdout } of results) expect(Number(stdout)).toBeGreaterThan(1);
});
