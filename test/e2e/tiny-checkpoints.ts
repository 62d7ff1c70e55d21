/**
 * A process that does little but save, for the tests that kill it: `node --import tsx test/e2e/tiny-checkpoints.ts <runDir> <MiB>`. Every value
 * of a checkpoint is its step; the tensors move on while it is written. Every fifth one is the best so far. Goes on from the newest checkpoint, and never ends by itself.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { fill_, zeros } from "../../src/torch/ops.ts";
import { keep, scope } from "../../src/torch/scope.ts";
import { readCheckpoint, tensorFile } from "../../src/trainer/checkpoint.ts";
import { latestCheckpoint } from "../../src/trainer/checkpoint-folder.ts";
import { Checkpointer } from "../../src/trainer/checkpointer.ts";

const [runDir, mib] = process.argv.slice(2) as [string, string];
const tensors = Array.from({ length: 4 }, () => keep(zeros([Number(mib) * 2 ** 16 + 1]))); // float32: a quarter each
const entries = tensors.map((tensor, i) => {
  return { name: `t${i}`, dtype: tensor.dtype, shape: tensor.shape, read: () => tensor };
});
const fill = (value: number) => scope(() => tensors.map((tensor) => fill_(tensor, value)));

const newest = latestCheckpoint(runDir);
const best = { count: 1, metric: "good", goal: "maximize" } as const;
const checkpoints = new Checkpointer(runDir, { keepLast: 2, best });
for (let step = newest === undefined ? 1 : readCheckpoint(newest, "sft").step + 1; ; step++) {
  fill(step);
  const files = [
    tensorFile("model/model.safetensors", entries.slice(0, 2)),
    tensorFile("optimizer.safetensors", entries),
    { name: "state.json", bytes: Buffer.from(JSON.stringify({ stage: "sft", step })) },
  ];
  await checkpoints.save(step, files, { value: step % 5 });
  process.stdout.write(`saving ${step}\n`);
  fill(-step);
  await sleep(1);
}
