/** A process on a GPU of its own, alone or the ranks of a job, whose last rank does something that takes long: `stall-device.ts <what it does>`. */

import { setTimeout as sleep } from "node:timers/promises";
import { readPlace } from "../../src/distributed/environment.ts";
import { beginOperation, beginStep, onOperation } from "../../src/distributed/operation.ts";
import { ALONE, joinRanks } from "../../src/distributed/ranks.ts";
import { setDevice, synchronize } from "../../src/torch/cuda.ts";
import { op } from "../../src/torch/dispatch.ts";
import { add, ones } from "../../src/torch/ops.ts";
import { ProgressWatch } from "../../src/torch/progress.ts";
import { scope } from "../../src/torch/scope.ts";
import type { Tensor } from "../../src/torch/tensor.ts";
import { gpuOfRank } from "../torch/gpus.ts";

const LIMIT_MS = 4000;

const what = process.argv[2] as "hang" | "hang-beside" | "queue";
const place = readPlace(process.env);
const index = gpuOfRank(place?.localRank ?? 0);
setDevice(index);
const device = `cuda:${index}` as const;
const limits = { timeoutMs: 120_000, heartbeatMs: 30_000, stallMs: LIMIT_MS };
const ranks = place === null ? ALONE : joinRanks(place, { nccl: true, ...limits });
const who = place === null ? "" : `rank ${place.rank} of ${place.world}`;
using watch = new ProgressWatch({ limitMs: LIMIT_MS, patienceMs: 120_000, device: index, who, where: "here" });
onOperation((text) => watch.operation(text));

const mm = op("aten::mm");
const normal = op("aten::normal_");
const distance = op("aten::_cdist_forward");
using small = ones([64, 64], { device });
const short = (count: number) => {
  for (let i = 0; i < count; i++) add(small, small).free();
};

/** One kernel that takes far longer than the limit: 4e8 distances of 50,000 dimensions, in float64, each with a power. */
function oneKernel(): Tensor {
  const points = normal(ones([20_000, 50_000], { device, dtype: "float64" }), 0, 1, null);
  return distance(points, points, 3, null);
}

/** A queue that takes longer than the limit, of kernels that each end soon. */
function manyKernels(): void {
  scope(() => {
    const large = ones([8192, 8192], { device });
    for (let i = 0; i < 600; i++) mm(large, large).free();
  });
}

short(500);
ranks.group?.allReduce(small).wait(); // connections are made
synchronize();
beginStep(5);
beginOperation("update");
const start = performance.now();
if (ranks.rank === ranks.world - 1) {
  if (what === "queue") manyKernels();
  else oneKernel();
  short(200);
}
ranks.group?.allReduce(small).wait();
short(200);
if (what === "hang-beside") await sleep(60_000); // the event loop lives
synchronize();
process.stdout.write(String((performance.now() - start) / LIMIT_MS));
await ranks.leave();
