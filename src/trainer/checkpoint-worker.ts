/** Entry of the thread that writes checkpoints from shared memory, one at a time (checkpoint-thread.ts). */

import { parentPort } from "node:worker_threads";
import { CheckpointError } from "../errors.ts";
import {
  type CheckpointToWrite,
  type PartToWrite,
  type WrittenPart,
  writeCheckpoint,
  writePart,
} from "./checkpoint-folder.ts";

/** A failure as plain data: classes do not cross threads. */
export type CheckpointReply =
  | { folder: string; seconds: number }
  | { part: WrittenPart; seconds: number }
  | { failure: { path: string; problem: string; details: Record<string, unknown> } };

parentPort?.on("message", (checkpoint: CheckpointToWrite | PartToWrite) => {
  parentPort?.postMessage(write(checkpoint));
});

function write(checkpoint: CheckpointToWrite | PartToWrite): CheckpointReply {
  const start = performance.now();
  try {
    const written = "rank" in checkpoint ? { part: writePart(checkpoint) } : { folder: writeCheckpoint(checkpoint) };
    return { ...written, seconds: (performance.now() - start) / 1000 };
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error;
    const path = String(error.details.path);
    return { failure: { path, problem: error.message.replace(`${path}: `, ""), details: error.details } };
  }
}
