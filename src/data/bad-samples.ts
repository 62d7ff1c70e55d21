/** What happens to samples that cannot be used: the first stops the run, or up to a limit of them are counted and logged. */

import { DataError, GroveError, placeName } from "../errors.ts";
import { log as processLog } from "../log.ts";
import type { RecordPlace } from "../types.ts";
import type { DataLog, DataOptions } from "./options.ts";

/** So many skipped samples are logged one by one; the rest is only counted. */
const LOGGED = 20;

/**
 * The bad samples of one run, whoever meets them: training records, their media, evaluation records. A sample counts once, however often it is
 * read; known by its file and line, so that the count goes on where a resumed run reads the same files again.
 */
export class BadSamples {
  readonly #known: Set<string>;
  readonly #onBadSample: DataOptions["onBadSample"];
  readonly #limit: number;
  readonly #log: DataLog;

  /** @param known what `known` gave in the session before */
  constructor(
    options: Pick<DataOptions, "onBadSample" | "maxBadSamples">,
    log: DataLog = processLog,
    known: readonly string[] = [],
  ) {
    this.#known = new Set(known);
    this.#onBadSample = options.onBadSample;
    this.#limit = options.maxBadSamples;
    this.#log = log;
  }

  get count(): number {
    return this.#known.size;
  }

  /** Every bad sample so far, as `file:line` (`file:line:column` where a line holds several). */
  get known(): string[] {
    return [...this.#known];
  }

  /** Counts what other processes of the run have met. @throws DataError once all of them together are above the limit */
  learn(names: readonly string[]): void {
    for (const name of names) this.#known.add(name);
    if (this.count <= this.#limit) return;
    const last = this.known.at(-1) as string;
    throw new DataError({ file: last }, `${this.count} samples were unusable, data.maxBadSamples is ${this.#limit}`);
  }

  /**
   * Counts a skip (of a sample that is not known yet), or throws: with onBadSample "error" the error itself, wrapped so that it names file, line and sample; with "skip" one
   * that says the limit is passed. Errors that are not about data (a bug, no ffmpeg) are always thrown.
   */
  report(where: RecordPlace & { sampleId?: string }, error: unknown): void {
    if (!isAboutData(error)) throw error;
    const located = locate(where, error);
    if (this.#onBadSample === "error") throw located;
    const name = placeName(where);
    if (this.#known.has(name)) return;
    if (this.count + 1 > this.#limit) {
      throw new DataError(
        where,
        `${this.count + 1} samples were unusable, data.maxBadSamples is ${this.#limit}; the last: ${error.message}`,
        error,
      );
    }
    this.#known.add(name);
    if (this.count <= LOGGED) {
      const last = this.count === LOGGED ? " (further ones are counted without a message)" : "";
      this.#log.warn({ ...where, code: error.code, bad: this.count }, `skipped a sample${last}: ${error.message}`);
    }
  }
}

function isAboutData(error: unknown): error is GroveError {
  return error instanceof GroveError && ["DATA", "MEDIA", "PROMPT_TOO_LONG"].includes(error.code);
}

function locate(where: RecordPlace & { sampleId?: string }, error: GroveError): GroveError {
  return error instanceof DataError ? error : new DataError(where, error.message, error);
}
