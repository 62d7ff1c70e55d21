/** One rank that goes through a step in which one of them goes wrong: `heartbeat-rank.ts <victim> <what it does>`. */

import { renderError } from "../../src/cli/render-error.ts";
import { readPlace } from "../../src/distributed/environment.ts";
import { beginOperation, beginStep } from "../../src/distributed/operation.ts";
import { joinRanks } from "../../src/distributed/ranks.ts";
import { NativeError } from "../../src/errors.ts";

const [victim, what] = process.argv.slice(2);
const place = readPlace(process.env);
if (place === null) throw new Error("started outside a job");
const ranks = joinRanks(place, { nccl: false, timeoutMs: 60_000, heartbeatMs: 3000, log: `log of ${place.rank}` });
const meet = (timeoutMs = 60_000) => ranks.group?.barrier({ timeoutMs });

function spin(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

meet();
beginStep(5);
beginOperation(place.rank === Number(victim) ? "rollout" : "update");
process.stdout.write("ready\n");
try {
  if (place.rank === Number(victim)) {
    if (what === "throw") throw new NativeError("linear", "[4, 4]", new Error("CUDA out of memory"));
    if (what === "spin" || what === "late")
      spin(6000); // no turn of the event loop
    else await new Promise((resolve) => setTimeout(resolve, what === "pause" ? 500 : 60_000));
  }
  meet(what === "late" ? 1000 : undefined);
} catch (error) {
  process.stderr.write(`${renderError(error)}\n`);
  ranks.fail(renderError(error));
  process.exit(1);
}
await ranks.leave();
