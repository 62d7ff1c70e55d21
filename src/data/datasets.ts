/** Data sets: files of several layouts, read into samples. Media are not opened here. */

import { dirname, resolve } from "node:path";
import { DataError } from "../errors.ts";
import type { RecordPlace, Sample } from "../types.ts";
import { BadSamples } from "./bad-samples.ts";
import { chatSample, seedBenchSftSample } from "./chat.ts";
import { Fields, type ReadContext } from "./fields.ts";
import { genericSample } from "./generic.ts";
import { readJsonList } from "./json-list.ts";
import { type JsonLine, readJsonLines } from "./jsonl.ts";
import { longVideoBenchSample } from "./longvideobench.ts";
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

export interface RecordOptions {
  /** Key of the option shuffle; default 0. */
  seed?: number;
  /** Also shuffle options that come in an order of their own (the seed does so in training, not in evaluation); default false. */
  shuffleOptions?: boolean;
  /** Wording of the user's turn; default: the seed's. */
  template?: PromptTemplate;
}

export interface ReadOptions extends RecordOptions, Partial<Pick<DataOptions, "onBadSample" | "maxBadSamples">> {
  log?: DataLog;
  /** Counts bad records together with others of the same run, in place of onBadSample and maxBadSamples. */
  bad?: BadSamples;
}

/** A record as it was read, or what is wrong with it. */
export type ReadRecord = { where: RecordPlace } & (
  | { sample: Sample /** The id in the file, before it was made unique. */; ownId: string }
  | { error: unknown }
);

type RecordReader = (fields: Fields, id: string, context: ReadContext) => Sample;

interface Layout {
  read: RecordReader;
  /** The field that holds the sample id. */
  id: string;
  /** How the file is taken apart; default: JSON lines. */
  records?: (file: string) => AsyncGenerator<JsonLine>;
}

const READERS = {
  "seed-bench-r1": { read: seedBenchSample, id: "sample_id" },
  "seed-bench-r1-sft": { read: seedBenchSftSample, id: "sample_id" },
  longvideobench: { read: longVideoBenchSample, id: "id", records: readJsonList },
  generic: { read: genericSample, id: "id" },
  chat: { read: chatSample, id: "id" },
} satisfies Record<string, Layout>;

export type DataFormat = keyof typeof READERS;

/**
 * Reads a data set. Ids are made unique within it: a second record with the same id gets `#2` appended.
 *
 * @throws DataError naming file and line for a malformed line or a missing field; with onBadSample "skip" such lines are counted, logged and
 *   left out until there are more than maxBadSamples. A data set without a single usable record is always an error.
 */
export async function readDataset(source: DataSource, options: ReadOptions = {}): Promise<Sample[]> {
  const { onBadSample = "error", maxBadSamples = 0 } = options;
  const bad = options.bad ?? new BadSamples({ onBadSample, maxBadSamples }, options.log);
  const samples: Sample[] = [];
  for await (const record of readRecords(source, options)) {
    if ("sample" in record) samples.push(record.sample);
    else bad.report(record.where, record.error);
  }
  if (samples.length === 0) throw new DataError({ file: source.file }, "holds no usable record");
  return samples;
}

/**
 * Every record of a data set, good or bad, up to `source.limit` good ones.
 * @throws DataError when the file cannot be read at all
 */
export async function* readRecords(source: DataSource, options: RecordOptions = {}): AsyncGenerator<ReadRecord> {
  const { read, id: idField, records = readJsonLines }: Layout = READERS[source.format];
  const { seed = 0, shuffleOptions = false, template = seedPrompt } = options;
  const mediaRoot = resolve(source.mediaRoot ?? dirname(source.file));
  const seen = new Map<string, number>();
  const taken = new Set<string>();
  let good = 0;
  for await (const { value, ...place } of records(source.file)) {
    const where = { file: source.file, ...place };
    try {
      if (value instanceof DataError) throw value;
      const ownId = recordId(value[idField]) ?? String(where.line);
      let count = seen.get(ownId) ?? 0;
      let id: string;
      do id = ++count === 1 ? ownId : `${ownId}#${count}`;
      while (taken.has(id)); // a record may be called so in the file
      seen.set(ownId, count);
      taken.add(id);
      const fields = new Fields(value, { ...where, sampleId: id });
      yield { where, ownId, sample: read(fields, id, { mediaRoot, seed, shuffleOptions, template, source: where }) };
      good++;
    } catch (error) {
      yield { where, error };
    }
    if (good === source.limit) break;
  }
}

/** Ids are numbers in EgoPlan's records and strings elsewhere; a record without one is known by its line. */
function recordId(value: unknown): string | undefined {
  if (typeof value === "number" || (typeof value === "string" && value !== "")) return String(value);
  return undefined;
}
