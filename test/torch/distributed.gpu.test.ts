/** NCCL gives what the host's collectives give: of two ranks a float32 sum is the exact one, rounded once, on either. */

import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { spawnRanks } from "../distributed/spawn-ranks.ts";
import { expectResults } from "./distributed-check.ts";
import { hasGpusFor } from "./gpus.ts";

const SCRIPT = fileURLToPath(new URL("distributed-rank.ts", import.meta.url));

test.skipIf(!hasGpusFor(2))("collectives of two GPUs", async () => {
  const results = await spawnRanks(2, SCRIPT, ["results", "cuda"]);
  expectResults(
    results.map(({ status, stdout, stderr }) => {
      expect(status, stderr).toBe(0);
      return JSON.parse(stdout);
    }),
  );
});
