/** The report on one data set: its records, what their media and prompts turned out to be, its distributions. */

import { GroveError, placeName } from "../errors.ts";
import type { Sample } from "../types.ts";
import { type MediaFinding, mediaKey } from "./check-media.ts";
import { BAD_KINDS, type Problem, type ProblemKind, type RecordCheck, withoutPlace } from "./check-records.ts";
import type { DataSource } from "./datasets.ts";
import { mediaOf, type Processor } from "./processor.ts";
import { promptLength } from "./prompt-length.ts";

const COUNTED_FIELDS = ["video_source", "domain", "scenario", "duration_group"];

/** Least, 50th, 90th, 99th percentile (nearest rank) and most; null where there was nothing to measure. */
export type Spread = { min: number; p50: number; p90: number; p99: number; max: number } | null;

export interface SetReport {
  set: string; // "train 1", "eval L1"
  file: string;
  format: string;
  records: number; // that could be read
  usable: number; // of them, by a run
  problems: Problem[];
  unreadable: string | null;
  promptTokens: Spread;
  responses: number; // records that have one
  responseTokens: Spread;
  /** Frames taken of a video -> videos, each file once. */
  framesPerVideo: Record<number, number>;
  images: number; // files that could be decoded
  /** Field -> value -> records. */
  counts: Record<string, Record<string, number>>;
}

export interface ReadSet {
  set: string;
  source: DataSource;
  check: RecordCheck;
}

/**
 * @param media findings of all files, by `mediaKey`
 * @param processor null where nothing can be measured in tokens
 * @param limit tokens of a prompt
 */
export function reportOf(
  { set, source, check }: ReadSet,
  media: ReadonlyMap<string, MediaFinding>,
  processor: Processor | null,
  limit: number,
  onSample: () => void,
): SetReport {
  const problems = [...check.problems];
  const prompts: number[] = [];
  const responses: number[] = [];
  for (const sample of check.samples) {
    const findings = mediaOf(sample).map((ref) => media.get(mediaKey(ref)) as MediaFinding);
    const sizes = findings.flatMap((finding) => ("size" in finding ? [finding.size] : []));
    const faults = findings.flatMap((finding) => ("problem" in finding ? [finding] : []));
    for (const { problem: kind, message } of faults) problems.push({ kind, ...sample.source, message });
    if (faults.length === 0 && processor !== null) {
      try {
        prompts.push(promptLength(sample, sizes, processor, limit));
      } catch (error) {
        if (!(error instanceof GroveError)) throw error;
        if (typeof error.details.tokens === "number") prompts.push(error.details.tokens);
        const kind: ProblemKind = error.code === "DATA" ? "unusable record" : "prompt over the limit";
        problems.push({ kind, ...sample.source, message: withoutPlace(error, sample.source) });
      }
    }
    if (processor !== null && sample.response !== undefined) responses.push(responseLength(sample.response, processor));
    onSample();
  }
  const refs = new Map(check.samples.flatMap(mediaOf).map((ref) => [mediaKey(ref), ref]));
  const framesPerVideo: Record<number, number> = {};
  let images = 0;
  for (const [key, { kind }] of refs) {
    const finding = media.get(key) as MediaFinding;
    if (!("size" in finding)) continue;
    if (kind === "image") images++;
    else framesPerVideo[finding.size.frames] = (framesPerVideo[finding.size.frames] ?? 0) + 1;
  }
  problems.sort((a, b) => a.line - b.line || (a.column ?? 0) - (b.column ?? 0));
  const unusable = new Set(problems.filter(isBad).map(placeName));
  return {
    set,
    file: source.file,
    format: source.format,
    records: check.samples.length,
    usable: check.samples.filter((sample) => !unusable.has(placeName(sample.source))).length,
    problems,
    unreadable: check.unreadable,
    promptTokens: spread(prompts),
    responses: check.samples.filter(({ response }) => response !== undefined).length,
    responseTokens: spread(responses),
    framesPerVideo,
    images,
    counts: countsOf(check.samples),
  };
}

/** What SFT learns of a response: its tokens, the end of the turn, the template's line break. */
function responseLength(response: string, { tokenizer }: Processor): number {
  return tokenizer.encode(response).length + 1 + tokenizer.encode("\n").length;
}

export function isBad({ kind }: Problem): boolean {
  return (BAD_KINDS as readonly string[]).includes(kind);
}

export function spread(values: readonly number[]): Spread {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] as number;
  return { min: at(0), p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1) };
}

function countsOf(samples: readonly Sample[]): Record<string, Record<string, number>> {
  const counts: Record<string, Record<string, number>> = {};
  const none = () => Object.create(null) as Record<string, number>; // a scenario may be called "constructor"
  for (const { fields } of samples) {
    for (const field of COUNTED_FIELDS) {
      const value = fields[field];
      if (typeof value !== "string" && typeof value !== "number") continue;
      counts[field] ??= none();
      counts[field][value] = (counts[field][value] ?? 0) + 1;
    }
  }
  return counts;
}
