/** Entry of the thread that writes checkpoints from shared memory, one at a time (checkpoint-thread.ts). */

import { parentPort } from "node:worker_threads";
import { CheckpointError } from "../errors.ts";
import { type CheckpointToWrite, writeCheckpoint } from "./checkpoint-folder.ts";

/** A failure as plain data: classes do not cross threads. */
export type CheckpointReply =
  | { folder: string; seconds: number }
  | { failure: { path: string; problem: string; details: Record<string, unknown> } };

parentPort?.on("message", (checkpoint: CheckpointToWrite) => {
  parentPort?.postMessage(write(checkpoint));
});

function write(checkpoint: CheckpointToWrite): CheckpointReply {
  const start = performance.now();
  try {
    const folder = writeCheckpoint(checkpoint);
    return { folder, seconds: (performance.now() - start) / 1000 };
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error;
    const path = String(error.details.path);
    return { failure: { path, problem: error.message.replace(`${path}: `, ""), details: error.details } };
  }
}
