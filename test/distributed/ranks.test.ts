import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { spawnRanks } from "./spawn-ranks.ts";

const SCRIPT = fileURLToPath(new URL("gather-rank.ts", import.meta.url));

test("values of any sizes are gathered, short ones beside long ones too", { timeout: 300_000 }, async () => {
  // In bytes, around the 8 KiB that travel with a value's length.
  const sizes = [
    [5, 7, 9],
    [20_000, 5, 8_100],
    [1, 8_184, 8_190],
    [30_000, 40_000, 3],
  ];
  const results = await spawnRanks(3, SCRIPT, [JSON.stringify(sizes)]);
  for (const { status, stdout, stderr } of results) {
    expect(stderr).toBe("");
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toEqual(
      sizes.map((lengths) => lengths.map((length, rank) => [String(rank), length, 1])),
    );
  }
});
