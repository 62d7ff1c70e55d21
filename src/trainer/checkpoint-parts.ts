/** How the ranks of a job write one checkpoint together: each tells rank 0, through the job's store, what it has written. */

import { setTimeout as sleep } from "node:timers/promises";
import type { Ranks } from "../distributed/ranks.ts";
import { CheckpointError } from "../errors.ts";
import type { WrittenPart } from "./checkpoint-folder.ts";

type Message = { part: WrittenPart } | { problem: string };

/** Between two looks at whether a rank has written its part. */
const POLL_MS = 20;

/** Tells rank 0 that this rank's part of a checkpoint is written. */
export function announcePart({ group, rank }: Ranks, step: number, part: WrittenPart): void {
  group?.post(key(step, rank), Buffer.from(JSON.stringify({ part } satisfies Message)));
}

/** Tells rank 0 that this rank's part cannot be written, so that it does not wait for it. */
export function announceFailure({ group, rank }: Ranks, step: number, error: unknown): void {
  const problem = error instanceof Error ? error.message : String(error);
  group?.post(key(step, rank), Buffer.from(JSON.stringify({ problem } satisfies Message)));
}

/**
 * The parts of all other ranks, once they are written.
 * @param isDue asked while a part is missing: true gives up
 * @throws CheckpointError when a rank could not write its part, or has not done so in time
 */
export async function collectParts(
  { group, world }: Ranks,
  step: number,
  folder: string,
  isDue: () => boolean,
): Promise<WrittenPart[]> {
  const parts: WrittenPart[] = [];
  for (let rank = 1; rank < world; rank++) {
    let bytes = group?.take(key(step, rank));
    while (bytes === undefined) {
      if (isDue()) throw new CheckpointError(folder, `rank ${rank} has not written its part`);
      await sleep(POLL_MS);
      bytes = group?.take(key(step, rank));
    }
    const message = JSON.parse(Buffer.from(bytes).toString()) as Message;
    if ("problem" in message)
      throw new CheckpointError(folder, `rank ${rank} could not write its part: ${message.problem}`);
    parts.push(message.part);
  }
  return parts;
}

function key(step: number, rank: number): string {
  return `checkpoint/${step}/${rank}`;
}
