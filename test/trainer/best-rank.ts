/** One rank of best-checkpoint.test.ts: saves a step for every number of the JSON list in the second argument, null where there is none. */

import { readPlace } from "../../src/distributed/environment.ts";
import { ALONE, joinRanks } from "../../src/distributed/ranks.ts";
import { keep } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import { tensorFile } from "../../src/trainer/checkpoint.ts";
import { Checkpointer } from "../../src/trainer/checkpointer.ts";

const [runDir, values, first] = process.argv.slice(2) as [string, string, string];
const place = readPlace(process.env);
const ranks = place === null ? ALONE : joinRanks(place, { nccl: false, timeoutMs: 300_000 });
const tensor = keep(
  fromArray(
    Float64Array.from({ length: 90 }, (_, i) => i),
    [90],
  ),
);
const entry = { name: "t", dtype: tensor.dtype, shape: tensor.shape, read: () => tensor };
const best = { count: 1, metric: "good", goal: "maximize" } as const;
const checkpoints = new Checkpointer(runDir, { keepLast: 1, best, ranks });
for (const [i, value] of (JSON.parse(values) as (number | null)[]).entries()) {
  const files = [tensorFile(`optimizer-${ranks.rank}.safetensors`, [entry])];
  await checkpoints.save(Number(first) + i, files, value === null ? {} : { value });
}
await checkpoints.close();
await ranks.leave();
