/** What check-data finds in the records of one data set, before any media file is opened. */

import { DataError, GroveError, placeName } from "../errors.ts";
import type { RecordPlace, Sample } from "../types.ts";
import { mediaIn } from "./chat.ts";
import { type DataSource, type RecordOptions, readRecords } from "./datasets.ts";

/** What may be wrong with a record. The first group makes a run skip the record or stop at it, the second is only worth knowing. */
export const BAD_KINDS = [
  "malformed line",
  "unusable record",
  "answer not among the options",
  "missing answer",
  "no gold answer",
  "missing media",
  "undecodable media",
  "prompt over the limit",
] as const;
export const NOTE_KINDS = [
  "duplicate id",
  "repeated option",
  "gold letter not among the options",
  "answer contradicts the gold letter",
  "response without a gold answer",
  "media in a field that is not read",
] as const;
export type ProblemKind = (typeof BAD_KINDS)[number] | (typeof NOTE_KINDS)[number];

export interface Problem extends RecordPlace {
  kind: ProblemKind;
  message: string;
}

export interface RecordCheck {
  samples: Sample[];
  problems: Problem[];
  /** Why the file cannot be read at all; null where it can. */
  unreadable: string | null;
}

/** Fields whose faults are about the answer. */
const ANSWER_FIELDS = ["answer", "golden_choice_idx", "correct_choice"];

/**
 * Reads every record of a data set; faults are collected, never thrown.
 * @param known ids that other files of the same set had already, by the place of their first record; this file's are added
 */
export async function checkRecords(
  source: DataSource,
  options: RecordOptions & {
    /** The gold answer that a reward reads out of a solution, "" for none; null where none is needed. */
    goldOf: ((solution: string) => string) | null;
    known: Map<string, string>;
  },
): Promise<RecordCheck> {
  const check: RecordCheck = { samples: [], problems: [], unreadable: null };
  const report = (kind: ProblemKind, where: RecordPlace, message: string) =>
    void check.problems.push({ kind, ...where, message });
  try {
    for await (const record of readRecords(source, options)) {
      const { where } = record;
      if ("error" in record) {
        report(kindOf(record.error), where, withoutPlace(record.error, where));
        continue;
      }
      const { sample, ownId } = record;
      check.samples.push(sample);
      const before = options.known.get(ownId);
      if (before === undefined) options.known.set(ownId, placeName(where));
      else {
        const renamed = sample.id === ownId ? "" : `; this record is called ${sample.id}`;
        report("duplicate id", where, `id ${ownId} was used at ${before} already${renamed}`);
      }
      for (const [kind, message] of doubts(sample, options.goldOf)) report(kind, where, message);
    }
  } catch (error) {
    if (!(error instanceof DataError)) throw error;
    check.unreadable = error.message;
  }
  return check;
}

/** What a run would not stumble over while it reads the record, although something is odd. */
function* doubts(
  { solution, response, messages, fields }: Sample,
  goldOf: ((solution: string) => string) | null,
): Generator<[ProblemKind, string]> {
  const unread = messages.some(({ content }) => mediaIn(content)) ? undefined : mediaField(fields);
  if (unread !== undefined) {
    yield [
      "media in a field that is not read",
      `asked without any video or image, although it has a field ${JSON.stringify(unread)}`,
    ];
  }
  const gold = goldOf?.(solution) ?? solution.replaceAll(/<\/?answer>/g, "").trim();
  if (gold === "" && goldOf !== null) {
    if (response === undefined) yield ["no gold answer", "has no answer, so accuracy cannot judge it"];
    else
      yield ["response without a gold answer", "can be learnt by SFT; accuracy cannot judge it, so GRPO stops at it"];
    return;
  }
  const content = messages.at(-1)?.content ?? "";
  const text = typeof content === "string" ? content : content.map((p) => (p.type === "text" ? p.text : "")).join("");
  const options = new Map([...text.matchAll(/^([A-Z])\. (.*)$/gm)].map(([, letter, option]) => [letter, option]));
  if (options.size < 2) return;
  const letter = gold[0] ?? "";
  if (gold !== "" && !options.has(letter)) {
    yield [
      "gold letter not among the options",
      `the answer ${JSON.stringify(gold.slice(0, 40))} is none of ${[...options.keys()].join(", ")}`,
    ];
  }
  const texts = [...options.values()];
  const repeated = texts.find((option, i) => texts.indexOf(option) !== i);
  if (repeated !== undefined) yield ["repeated option", `two options read ${JSON.stringify(repeated)}`];
  const { answer, golden_choice_idx: marked } = fields;
  if (typeof marked === "string" && typeof answer === "string" && answer !== options.get(letter)) {
    const chosen = JSON.stringify(options.get(letter));
    yield ["answer contradicts the gold letter", `answer is ${JSON.stringify(answer)}, choice ${marked} is ${chosen}`];
  }
}

/** The name of a field that seems to hold what `video` or `image` should: `videos`, `image_path`. */
function mediaField(fields: Sample["fields"]): string | undefined {
  const isFile = (value: unknown) => typeof value === "string" && /\.\w{2,5}$/.test(value);
  return Object.keys(fields).find((name) => /video|image/i.test(name) && [fields[name]].flat().some(isFile));
}

function kindOf(error: unknown): ProblemKind {
  if (!(error instanceof GroveError)) throw error;
  const { field, isMissing, sampleId } = error.details;
  if (ANSWER_FIELDS.includes(String(field))) return isMissing ? "missing answer" : "answer not among the options";
  return field === undefined && sampleId === undefined ? "malformed line" : "unusable record";
}

/** The message without the file and line that the report prints anyway. */
export function withoutPlace(error: unknown, where: RecordPlace): string {
  const { message } = error as Error;
  const place = placeName(where);
  return message.replace(`${place}: `, "").replace(`${place} `, "");
}
