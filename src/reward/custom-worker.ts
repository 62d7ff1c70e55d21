/** Entry point of a reward's worker thread: imports the module it is told, then answers one message per call. */

import { parentPort, workerData } from "node:worker_threads";
import { invariant } from "../errors.ts";
import type { WorkerReply } from "./custom.ts";
import type { RewardArgs } from "./rewards.ts";

invariant(parentPort, "the reward worker runs outside a worker thread");
const port = parentPort;
const answer = (reply: WorkerReply) => port.postMessage(reply);
const describe = (cause: unknown) => (cause instanceof Error ? (cause.stack ?? cause.message) : String(cause));

try {
  const score: unknown = ((await import(workerData as string)) as { default?: unknown }).default;
  if (typeof score !== "function") throw new Error("its default export is not a function");
  port.on("message", async (args: RewardArgs) => {
    try {
      answer({ values: await score(args) });
    } catch (cause) {
      answer({ error: describe(cause) });
    }
  });
  answer({ ready: true });
} catch (cause) {
  answer({ error: describe(cause) });
}
