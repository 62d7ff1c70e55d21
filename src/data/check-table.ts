/** The report of check-data as text. */

import { placeName } from "../errors.ts";
import type { DataReport } from "./check-data.ts";
import type { Problem } from "./check-records.ts";
import { isBad, type SetReport, type Spread } from "./check-set.ts";
import type { DataOptions } from "./options.ts";

/** So many problems of a kind are written out; --json has all of them. */
const SHOWN = 10;
const GIB = 2 ** 30;

export function reportText(
  report: DataReport,
  config: Pick<DataOptions, "onBadSample" | "maxBadSamples" | "cacheGib">,
): string {
  const lines = report.sets.flatMap((set) => [...setLines(set), ""]);
  const gib = report.decodedBytes / GIB;
  const cache =
    config.cacheGib === 0 ? "there is no cache (data.cacheGib is 0)" : `data.cacheGib is ${config.cacheGib}`;
  lines.push(
    `media: ${number(report.mediaFiles)} files, each decoded once; their frames take ${gib.toFixed(2)} GiB, ${cache}`,
  );
  if (report.unmeasured !== null) lines.push(report.unmeasured);
  const { train, eval: evaluation } = report.bad;
  if (config.onBadSample === "skip") {
    const enough = report.stops.some((reason) => reason.includes("data.maxBadSamples")) ? "not enough" : "enough";
    lines.push(
      `skipped by a run: ${number(train)} training and ${number(evaluation)} evaluation records; data.maxBadSamples, ${config.maxBadSamples}, is ${enough}`,
    );
  }
  if (report.stops.length === 0) lines.push("nothing here would stop a run");
  else lines.push("a run would stop:", ...report.stops.map((reason) => `  ${reason}`));
  return lines.join("\n");
}

function setLines(set: SetReport): string[] {
  const { framesPerVideo, responses, records } = set;
  const videos = Object.values(framesPerVideo).reduce((sum, count) => sum + count, 0);
  const rows: [string, string][] = [
    ["records", `${number(records)}, ${number(set.usable)} of them usable`],
    ["media", `${number(videos)} videos, ${number(set.images)} images`],
    ["prompt tokens", spreadText(set.promptTokens)],
  ];
  if (responses > 0) {
    const some =
      responses < records ? `; ${number(records - responses)} records have no response, and SFT stops at one` : "";
    rows.push(["response tokens", spreadText(set.responseTokens) + some]);
  }
  if (videos > 0) rows.push(["frames of a video", tallies(framesPerVideo, (frames) => `${frames}: `)]);
  for (const [field, counts] of Object.entries(set.counts)) rows.push([field, tallies(counts, (value) => `${value} `)]);
  const width = Math.max(...rows.map(([name]) => name.length));
  const head = `${set.set}  ${set.file} (${set.format})`;
  if (set.unreadable !== null) return [head, `  ! ${set.unreadable}`];
  return [head, ...rows.map(([name, text]) => `  ${name.padEnd(width)}  ${text}`), ...problemLines(set.problems)];
}

function problemLines(problems: readonly Problem[]): string[] {
  const byKind = new Map<string, Problem[]>();
  for (const problem of problems) {
    const own = byKind.get(problem.kind);
    if (own === undefined) byKind.set(problem.kind, [problem]);
    else own.push(problem);
  }
  return [...byKind].flatMap(([kind, own]) => [
    `  ${isBad(own[0] as Problem) ? "!" : "note:"} ${kind}: ${number(own.length)}`,
    ...own.slice(0, SHOWN).map((problem) => `      ${placeName(problem)}: ${problem.message.replaceAll("\n", "; ")}`),
    ...(own.length > SHOWN ? [`      and ${number(own.length - SHOWN)} more; --json lists them`] : []),
  ]);
}

function spreadText(spread: Spread): string {
  if (spread === null) return "not counted";
  return Object.entries(spread)
    .map(([name, value]) => `${name} ${number(value)}`)
    .join("  ");
}

function tallies(counts: Record<string, number>, label: (value: string) => string): string {
  return Object.entries(counts)
    .map(([value, count]) => label(value) + number(count))
    .join(", ");
}

function number(value: number): string {
  return value.toLocaleString("en-US");
}
