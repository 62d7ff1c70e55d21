/** One rank of agent-store.test.ts: `agent-rank.ts <port of the store> <wait or leave>`. */

import { readPlace } from "../../src/distributed/environment.ts";
import { joinRanks } from "../../src/distributed/ranks.ts";

const [port, what] = process.argv.slice(2);
const { RANK } = process.env;
const place = readPlace({
  ...process.env,
  MASTER_PORT: port,
  TORCHELASTIC_USE_AGENT_STORE: "True",
  TORCHELASTIC_RESTART_COUNT: RANK, // each machine counts its own
});
if (place === null) throw new Error("started outside a job");
const ranks = joinRanks(place, { nccl: false, timeoutMs: 60_000, heartbeatMs: 2000 });
process.stdout.write(JSON.stringify(ranks.gather(`${what} ${RANK}`)));
if (what === "wait") await new Promise((resolve) => setTimeout(resolve, 60_000));
await ranks.leave();
