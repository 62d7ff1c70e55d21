/** Data sets: JSONL files of several layouts, read into samples. Media are not opened here. */

import { dirname, resolve } from "node:path";
import { DataError } from "../errors.ts";
import type { Sample } from "../types.ts";
import { BadSamples } from "./bad-samples.ts";
import { chatSample, seedBenchSftSample } from "./chat.ts";
import { Fields, type ReadContext } from "./fields.ts";
import { genericSample } from "./generic.ts";
import { readJsonLines } from "./jsonl.ts";
import type { DataLog, DataOptions } from "./options.ts";
import { type PromptTemplate, seedPrompt } from "./question.ts";
import { seedBenchSample } from "./seed-bench-r1.ts";

export interface DataSource {
  file: string;
  /** What media paths are relative to; default: the file's folder. */
  mediaRoot?: string | undefined;
  format: DataFormat;
  /** Only the first n records. */
  limit?: number | undefined;
}

export interface ReadOptions extends Partial<Pick<DataOptions, "onBadSample" | "maxBadSamples">> {
  /** Key of the option shuffle; default 0. */
  seed?: number;
  /** Also shuffle options that come in an order of their own (the seed does so in training, not in evaluation); default false. */
  shuffleOptions?: boolean;
  /** Wording of the user's turn; default: the seed's. */
  template?: PromptTemplate;
  log?: DataLog;
}

type RecordReader = (fields: Fields, id: string, context: ReadContext) => Sample;

/** Layout -> its reader, and the field that holds the sample id. */
const READERS = {
  "seed-bench-r1": { read: seedBenchSample, id: "sample_id" },
  "seed-bench-r1-sft": { read: seedBenchSftSample, id: "sample_id" },
  generic: { read: genericSample, id: "id" },
  chat: { read: chatSample, id: "id" },
} satisfies Record<string, { read: RecordReader; id: string }>;

export type DataFormat = keyof typeof READERS;

/**
 * Reads a data set. Ids are made unique within it: a second record with the same id gets `#2` appended.
 *
 * @throws DataError naming file and line for a malformed line or a missing field; with onBadSample "skip" such lines are counted, logged and
 *   left out until there are more than maxBadSamples. A data set without a single usable record is always an error.
 */
export async function readDataset(source: DataSource, options: ReadOptions = {}): Promise<Sample[]> {
  const { onBadSample = "error", maxBadSamples = 0 } = options;
  const bad = new BadSamples({ onBadSample, maxBadSamples }, options.log);
  const { read, id: idField } = READERS[source.format];
  const mediaRoot = resolve(source.mediaRoot ?? dirname(source.file));
  const seen = new Map<string, number>();
  const samples: Sample[] = [];
  for await (const { line, value } of readJsonLines(source.file)) {
    const where = { file: source.file, line };
    try {
      if (value instanceof DataError) throw value;
      const own = recordId(value[idField]) ?? String(line);
      const count = (seen.get(own) ?? 0) + 1;
      seen.set(own, count);
      const id = count === 1 ? own : `${own}#${count}`;
      const fields = new Fields(value, { ...where, sampleId: id });
      const { seed = 0, shuffleOptions = false, template = seedPrompt } = options;
      samples.push(read(fields, id, { mediaRoot, seed, shuffleOptions, template, source: where }));
    } catch (error) {
      bad.report(where, error);
    }
    if (source.limit !== undefined && samples.length >= source.limit) break;
  }
  if (samples.length === 0) throw new DataError({ file: source.file }, "holds no usable record");
  return samples;
}

/** Ids are numbers in EgoPlan's records and strings elsewhere; a record without one is known by its line. */
function recordId(value: unknown): string | undefined {
  if (typeof value === "number" || (typeof value === "string" && value !== "")) return String(value);
  return undefined;
}
