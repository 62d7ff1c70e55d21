/**
 * What has happened in an experiment, a line of JSON an event, appended and flushed before anything follows from it: what a killed process
 * had finished is known to the next one.
 */

import { closeSync, existsSync, fsyncSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";
import { CheckpointError } from "../errors.ts";

export class Journal<Event> implements Disposable {
  /** Of earlier processes and this one, in order. */
  readonly events: Event[];
  readonly #descriptor: number;

  /** Opens a file of events, or begins one. A line that was being written when a process died is cut off. */
  constructor(file: string) {
    const text = existsSync(file) ? readFileSync(file, "utf8") : "";
    const whole = text.slice(0, text.lastIndexOf("\n") + 1);
    if (whole.length < text.length) truncateSync(file, Buffer.byteLength(whole));
    this.events = whole
      .split("\n")
      .filter((line) => line !== "")
      .map((line, i) => parseEvent<Event>(file, i + 1, line));
    this.#descriptor = openSync(file, "a");
  }

  add(event: Event): void {
    const bytes = Buffer.from(`${JSON.stringify(event)}\n`);
    for (let done = 0; done < bytes.length; ) done += writeSync(this.#descriptor, bytes, done);
    fsyncSync(this.#descriptor);
    this.events.push(event);
  }

  [Symbol.dispose](): void {
    closeSync(this.#descriptor);
  }
}

function parseEvent<Event>(file: string, line: number, text: string): Event {
  try {
    return JSON.parse(text) as Event;
  } catch (error) {
    throw new CheckpointError(
      file,
      `line ${line} is not JSON; it was changed by hand, or the disk is damaged`,
      {},
      error,
    );
  }
}
