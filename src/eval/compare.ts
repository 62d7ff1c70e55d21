/** Two evaluations of the same questions side by side: by level and part, and the questions whose outcome flipped. */

import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { extractAnswer } from "../reward/extract-answer.ts";
import { type EvalRecord, readAnswers } from "./answers.ts";
import { mcnemarExact, type PairedCounts, pairedDifference } from "./paired.ts";
import { type Parts, partAt, walkParts } from "./parts.ts";
import { alignTable, short } from "./table.ts";

/** Level -> sample id -> answer. */
export type Run = Record<string, Map<string, EvalRecord>>;

/** One level or part of it under both models. */
export interface Comparison extends PairedCounts {
  /** "L3", or "L3 / Hobbies / baking". */
  name: string;
  /** The last of it: "baking". */
  label: string;
  depth: number;
  n: number;
  accuracyA: number;
  accuracyB: number;
  /** B - A, with the 95 % interval of Newcombe's method 10. */
  difference: number;
  low: number;
  high: number;
  /** Exact McNemar. */
  p: number;
}

/** A question that one of the models alone got right. */
export interface Flip {
  level: string;
  sample_id: string;
  problem: string;
  solution: string;
  right: "a" | "b";
  responseA: string;
  responseB: string;
}

/** Where the questions of two runs differ. */
export interface Overlap {
  level: string;
  shared: number;
  onlyA: number;
  onlyB: number;
  /** Same id, but another question or another gold answer. */
  different: number;
}

/** The answers of an evaluation's folder by level; files of shards count. Empty for a folder without answers. */
export function readRun(folder: string): Run {
  const run: Run = {};
  const names = existsSync(folder) ? readdirSync(folder).sort() : [];
  for (const name of names) {
    const level = /^answers-(.+?)(?:\.shard-\d+-of-\d+)?\.jsonl$/.exec(name)?.[1];
    if (level === undefined) continue;
    run[level] ??= new Map();
    for (const record of readAnswers(path.join(folder, name))) run[level].set(record.sample_id, record);
  }
  return run;
}

/** How far two runs answer the same questions, level by level. */
export function overlapOf(a: Run, b: Run): Overlap[] {
  const levels = [...new Set([...Object.keys(a), ...Object.keys(b)])].sort();
  return levels.map((level) => {
    const [inA, inB] = [a[level] ?? new Map<string, EvalRecord>(), b[level] ?? new Map<string, EvalRecord>()];
    const both = [...inA.values()].filter(({ sample_id }) => inB.has(sample_id));
    const shared = both.filter((record) => sameQuestion(record, inB.get(record.sample_id))).length;
    return {
      level,
      shared,
      different: both.length - shared,
      onlyA: inA.size - both.length,
      onlyB: inB.size - both.length,
    };
  });
}

/** Why two runs cannot be compared as they are, a line per level; empty when they answer the same questions. */
export function overlapProblems(overlaps: readonly Overlap[]): string[] {
  return overlaps
    .filter(({ onlyA, onlyB, different }) => onlyA + onlyB + different > 0)
    .map(({ level, shared, onlyA, onlyB, different }) => {
      const parts = [`${shared} questions in common`];
      if (onlyA > 0) parts.push(`${onlyA} only in a`);
      if (onlyB > 0) parts.push(`${onlyB} only in b`);
      if (different > 0) parts.push(`${different} with the same id but another text or gold answer`);
      return `${level}: ${parts.join(", ")}`;
    });
}

/** Compares two runs on the questions they share. Levels without any are left out. */
export function compareRuns(a: Run, b: Run): { rows: Comparison[]; flips: Flip[] } {
  const rows: Comparison[] = [];
  const flips: Flip[] = [];
  for (const level of Object.keys(a).sort()) {
    const whole: PairedCounts = empty();
    const counts = new Map<object, PairedCounts>();
    const parts: Parts = {};
    for (const one of a[level]?.values() ?? []) {
      const other = b[level]?.get(one.sample_id);
      if (other === undefined || !sameQuestion(one, other)) continue;
      const outcome = outcomeOf(one, other);
      whole[outcome]++;
      for (const place of one.parts ?? []) {
        for (const [i] of place.entries()) {
          const part = partAt(parts, place.slice(0, i + 1));
          const count = counts.get(part) ?? empty();
          counts.set(part, count);
          count[outcome]++;
        }
      }
      if (outcome === "onlyA" || outcome === "onlyB") flips.push(flipOf(level, one, other));
    }
    if (total(whole) === 0) continue;
    rows.push(rowOf([level], 0, whole));
    for (const { path: place, depth, tally } of walkParts(parts)) {
      rows.push(rowOf([level, ...place.map(([, part]) => part)], depth, counts.get(tally) as PairedCounts));
    }
  }
  return { rows, flips };
}

/** A row per level and part; fits 100 columns. */
export function comparisonTable(rows: readonly Comparison[]): string {
  const percent = (share: number) => (100 * share).toFixed(1);
  const signed = (share: number) => `${share < 0 ? "-" : "+"}${percent(Math.abs(share))}`;
  return alignTable([
    ["level", "n", "A %", "B %", "B - A", "95 % interval", "p", "both/A/B/none"],
    ...rows.map((row) => [
      short(`${"  ".repeat(row.depth)}${row.label}`, 28),
      String(row.n),
      percent(row.accuracyA),
      percent(row.accuracyB),
      signed(row.difference),
      `${signed(row.low)} - ${signed(row.high)}`.replace(" - ", " to "),
      row.p < 0.0001 ? "<0.0001" : row.p.toFixed(4),
      `${row.both}/${row.onlyA}/${row.onlyB}/${row.neither}`,
    ]),
  ]);
}

/** A flipped question in two or three lines: what was asked, the gold answer, what each answered. */
export function flipText({ level, sample_id, problem, solution, right, responseA, responseB }: Flip): string {
  const question = problem.trim().split("\n", 1)[0] ?? "";
  const answer = (response: string) => short((extractAnswer(response) ?? response).replaceAll(/\s+/g, " ").trim(), 34);
  const gold = short((extractAnswer(solution) ?? solution).trim(), 16);
  return (
    `${level} ${sample_id}: ${ending(question, 92 - level.length - sample_id.length)}\n` +
    `    gold ${gold}  |  ${right === "a" ? "*" : ""}A: ${answer(responseA)}  |  ${right === "b" ? "*" : ""}B: ${answer(responseB)}`
  );
}

/** The end of a long question: the seed's begin alike and name their goal last. */
function ending(question: string, width: number): string {
  const characters = [...question];
  return characters.length <= width ? question : `…${characters.slice(-Math.max(8, width - 1)).join("")}`;
}

function sameQuestion(one: EvalRecord, other: EvalRecord | undefined): boolean {
  return one.problem === other?.problem && one.solution === other.solution;
}

function outcomeOf({ reward: a }: EvalRecord, { reward: b }: EvalRecord): keyof PairedCounts {
  if (a === 1) return b === 1 ? "both" : "onlyA";
  return b === 1 ? "onlyB" : "neither";
}

function flipOf(level: string, a: EvalRecord, b: EvalRecord): Flip {
  const { sample_id, problem, solution } = a;
  const right = a.reward === 1 ? "a" : "b";
  return { level, sample_id, problem, solution, right, responseA: a.response, responseB: b.response };
}

function rowOf(names: readonly string[], depth: number, counts: PairedCounts): Comparison {
  const n = total(counts);
  return {
    name: names.join(" / "),
    label: names.at(-1) as string,
    depth,
    n,
    ...counts,
    accuracyA: (counts.both + counts.onlyA) / n,
    accuracyB: (counts.both + counts.onlyB) / n,
    ...pairedDifference(counts),
    p: mcnemarExact(counts.onlyA, counts.onlyB),
  };
}

function empty(): PairedCounts {
  return { both: 0, onlyA: 0, onlyB: 0, neither: 0 };
}

function total({ both, onlyA, onlyB, neither }: PairedCounts): number {
  return both + onlyA + onlyB + neither;
}
