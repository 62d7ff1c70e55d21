/** One rank, or a process alone, that stands still or is merely slow: `stall-rank.ts <what it does>`. The last rank does it, the others wait for it. */

import { execFileSync } from "node:child_process";
import { renderError } from "../../src/cli/render-error.ts";
import { readPlace } from "../../src/distributed/environment.ts";
import { beginOperation, beginStep, onOperation } from "../../src/distributed/operation.ts";
import { ALONE, joinRanks } from "../../src/distributed/ranks.ts";
import { add, ones } from "../../src/torch/ops.ts";
import { ProgressWatch, patiently } from "../../src/torch/progress.ts";

const LIMIT_MS = 2000;
const LONG_MS = 3 * LIMIT_MS;

const what = process.argv[2];
const place = readPlace(process.env);
const limits = { timeoutMs: 60_000, heartbeatMs: 30_000, stallMs: LIMIT_MS };
const ranks = place === null ? ALONE : joinRanks(place, { nccl: false, ...limits, log: `log of ${place.rank}` });
const own =
  place === null ? { who: "", where: "alone" } : { who: `rank ${place.rank} of ${place.world}`, where: "here" };
const watch = new ProgressWatch({ limitMs: LIMIT_MS, patienceMs: 60_000, device: -1, ...own });
onOperation((text) => watch.operation(text));

function spinOnAndOn(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

function work(ms: number): void {
  const end = performance.now() + ms;
  using a = ones([64, 64]);
  while (performance.now() < end) add(a, a).free();
}

const ACTS: Record<string, () => unknown> = {
  loop: () => spinOnAndOn(60_000),
  system: () => execFileSync("sleep", [String(LONG_MS / 1000)]),
  work: () => work(LONG_MS),
  await: () => new Promise((resolve) => setTimeout(resolve, LONG_MS)),
  patient: () => patiently(() => spinOnAndOn(LONG_MS)),
  nothing: () => {},
};

ranks.group?.barrier();
beginStep(5);
beginOperation(ranks.rank === ranks.world - 1 ? "rollout" : "update");
process.stdout.write("ready\n");
try {
  if (what === "each-other") {
    using flat = ones([4]);
    ranks.group?.broadcast(flat, 1 - ranks.rank).wait(); // each waits for what the other should send
  } else if (ranks.rank === ranks.world - 1) await (ACTS[what as string] as () => unknown)();
  ranks.group?.barrier();
} catch (error) {
  process.stderr.write(`${renderError(error)}\n`);
  ranks.fail(renderError(error));
  process.exit(1);
}
await ranks.leave();
watch[Symbol.dispose]();
