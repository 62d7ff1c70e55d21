import { createInterface } from "node:readline";
import type { Readable } from "node:stream";

/** What a reward function prints, line by line. */
export function eachLine(input: Readable, use: (line: string) => void): void {
  createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY }).on("line", use);
}
