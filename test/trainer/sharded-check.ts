/** What sharded-rank.ts has to find, on any device. */

import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import { spawnRanks } from "../distributed/spawn-ranks.ts";

const SCRIPT = fileURLToPath(new URL("sharded-rank.ts", import.meta.url));

export async function expectSharded(world: number, device: "cpu" | "cuda", tied: boolean, tolerance: number) {
  for (const { status, stderr, stdout } of await spawnRanks(world, SCRIPT, [device, tied ? "tied" : "apart"])) {
    expect(status, stderr).toBe(0);
    const { references, whole, sharded } = JSON.parse(stdout);
    expect(references).toEqual([true, true]);
    expect(whole).toBeLessThan(tolerance);
    expect(sharded).toBeLessThan(tolerance);
  }
}
