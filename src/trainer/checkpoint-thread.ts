/** The thread that writes checkpoints, as the thread that trains sees it. It starts with the first checkpoint. */

import { once } from "node:events";
import { createRequire } from "node:module";
import { Worker } from "node:worker_threads";
import { CheckpointError } from "../errors.ts";
import type { CheckpointToWrite, PartToWrite, WrittenPart } from "./checkpoint-folder.ts";
import type { CheckpointReply } from "./checkpoint-worker.ts";

export class CheckpointThread {
  #worker: Worker | null = null;

  /** Writes a checkpoint whose files lie in shared memory. @throws CheckpointError as writeCheckpoint does */
  async write(checkpoint: CheckpointToWrite): Promise<{ folder: string; seconds: number }> {
    return (await this.#ask(checkpoint)) as { folder: string; seconds: number };
  }

  /** Writes a rank's part of one. @throws CheckpointError as writePart does */
  async writePart(part: PartToWrite): Promise<{ part: WrittenPart; seconds: number }> {
    return (await this.#ask(part)) as { part: WrittenPart; seconds: number };
  }

  async #ask(checkpoint: CheckpointToWrite | PartToWrite): Promise<Exclude<CheckpointReply, { failure: unknown }>> {
    this.#worker ??= start();
    const worker = this.#worker;
    worker.ref(); // the process waits for what is being written, not for a thread that is idle
    worker.postMessage(checkpoint);
    try {
      const [reply] = (await once(worker, "message")) as [CheckpointReply]; // an "error" of the thread is thrown here
      if (!("failure" in reply)) return reply;
      const { path, problem, details } = reply.failure;
      throw new CheckpointError(path, problem, details);
    } finally {
      worker.unref();
    }
  }

  /** Ends the thread; nothing may be under way. */
  async close(): Promise<void> {
    await this.#worker?.terminate();
    this.#worker = null;
  }
}

/** The thread's program is TypeScript; in a thread, tsx takes what is required, not what is imported. */
function start(): Worker {
  const { resolve } = createRequire(import.meta.url);
  return new Worker('require(require("node:worker_threads").workerData)', {
    eval: true,
    workerData: resolve("./checkpoint-worker.ts"),
    execArgv: ["--require", resolve("tsx/cjs")],
  });
}
