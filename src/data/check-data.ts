/**
 * Looks through all data of a config before a run does: every record is read, every media file decoded, every prompt measured. Nothing ends
 * the walk at the first fault; what a run would make of the faults is said at the end.
 */

import { GroveError, placeName } from "../errors.ts";
import { checkMedia } from "./check-media.ts";
import { checkRecords } from "./check-records.ts";
import { isBad, type ReadSet, reportOf, type SetReport } from "./check-set.ts";
import type { DataSource } from "./datasets.ts";
import type { DataOptions } from "./options.ts";
import { Processor } from "./processor.ts";

export interface CheckOptions {
  seed: number;
  /** Folder of tokenizer and processor. Without a usable one nothing is measured in tokens, and media are decoded as Qwen2-VL wants them. */
  modelFolder: string;
  /** Only the first n records of each set. */
  limit?: number | undefined;
  /** The gold answer that accuracy reads out of a solution, "" for none. */
  goldOf: (solution: string) => string;
  /** Whether training judges answers by accuracy (GRPO); SFT records need none. */
  trainingIsJudged: boolean;
  /** Whether a training run reads the evaluation sets too. */
  evaluatesDuringTraining: boolean;
  onProgress?: (progress: { part: "media" | "prompts"; done: number; total: number }) => void;
}

export interface DataReport {
  sets: SetReport[];
  mediaFiles: number;
  /** Bytes of all decoded frames, what a cache of everything would hold. */
  decodedBytes: number;
  /** Why no token was counted; null where all were. */
  unmeasured: string | null;
  /** Records that a run skips or stops at: in training, in an evaluation. */
  bad: { train: number; eval: number };
  /** Why a run would stop. Empty: it would not. */
  stops: string[];
}

/** Qwen2-VL's: patches of 14, merged 2 by 2. */
const USUAL_FACTOR = 28;

export async function checkData(
  config: DataOptions & { train: readonly DataSource[]; eval: Readonly<Record<string, DataSource>> },
  options: CheckOptions,
): Promise<DataReport> {
  const sets = await readSets(config, options);
  const { processor, unmeasured } = await openProcessor(config, options.modelFolder);
  const { minPixels, maxPixels, resizedHeight, resizedWidth } = config;
  const size = processor?.sizeRule ?? { factor: USUAL_FACTOR, minPixels, maxPixels, resizedHeight, resizedWidth };
  const samples = sets.flatMap(({ check }) => check.samples);
  const media = await checkMedia(samples, config, size, (done, total) =>
    options.onProgress?.({ part: "media", done, total }),
  );
  let measured = 0;
  const reports = sets.map((set) =>
    reportOf(set, media, processor, config.maxPromptTokens, () => {
      measured++;
      if (measured % 100 === 0 || measured === samples.length)
        options.onProgress?.({ part: "prompts", done: measured, total: samples.length });
    }),
  );
  const sizes = [...media.values()].flatMap((finding) => ("size" in finding ? [finding.size] : []));
  const bad = { train: countBad(reports, "train"), eval: countBad(reports, "eval") };
  return {
    sets: reports,
    mediaFiles: media.size,
    decodedBytes: sizes.reduce((sum, { frames, height, width }) => sum + frames * height * width * 3, 0),
    unmeasured,
    bad,
    stops: [...(unmeasured === null ? [] : [unmeasured]), ...reasonsToStop(reports, bad, config, options)],
  };
}

async function readSets(config: Parameters<typeof checkData>[0], options: CheckOptions): Promise<ReadSet[]> {
  const { seed, limit, goldOf, trainingIsJudged } = options;
  const cut = (source: DataSource) =>
    limit === undefined ? source : { ...source, limit: Math.min(limit, source.limit ?? limit) };
  const sets: ReadSet[] = [];
  const trained = new Map<string, string>(); // several training files are one set
  for (const [i, source] of config.train.entries()) {
    // A record to learn by heart needs no answer that could be judged.
    const gold = trainingIsJudged && source.format !== "seed-bench-r1-sft" ? goldOf : null;
    const how = { seed, shuffleOptions: true, goldOf: gold, known: trained };
    sets.push({ set: `train ${i + 1}`, source, check: await checkRecords(cut(source), how) });
  }
  for (const [level, source] of Object.entries(config.eval)) {
    sets.push({
      set: `eval ${level}`,
      source,
      check: await checkRecords(cut(source), { goldOf, known: new Map() }),
    });
  }
  return sets;
}

async function openProcessor(config: DataOptions, folder: string) {
  try {
    return { processor: await Processor.load(folder, config), unmeasured: null };
  } catch (error) {
    if (!(error instanceof GroveError)) throw error;
    return { processor: null, unmeasured: `no token was counted: ${error.message}` };
  }
}

/** Bad records by their place, as a run counts them. */
function countBad(reports: readonly SetReport[], role: "train" | "eval"): number {
  const own = reports.filter(({ set }) => set.startsWith(role));
  return new Set(own.flatMap(({ problems }) => problems.filter(isBad).map(placeName))).size;
}

function reasonsToStop(
  reports: readonly SetReport[],
  bad: DataReport["bad"],
  { onBadSample, maxBadSamples }: DataOptions,
  { evaluatesDuringTraining }: CheckOptions,
): string[] {
  const reasons = reports.flatMap(({ set, file, unreadable, records, usable, problems }) => {
    if (unreadable !== null) return [`${set}: ${unreadable}`];
    if (records === 0) return [`${set}: ${file} holds no usable record`];
    if (usable === 0) return [`${set}: none of the ${recordsOf(records)} of ${file} is usable`];
    const unjudged = problems.filter(({ kind }) => kind === "no gold answer").length;
    return unjudged > 0 ? [`${set}: ${recordsOf(unjudged)} without a gold answer, whatever data.onBadSample says`] : [];
  });
  if (onBadSample === "error") {
    const all = bad.train + bad.eval;
    return all === 0 ? reasons : [...reasons, `${recordsOf(all, "bad ")}, and data.onBadSample is error`];
  }
  const training = bad.train + (evaluatesDuringTraining ? bad.eval : 0);
  for (const [run, count] of [
    ["training", training],
    ["an evaluation", bad.eval],
  ] as const) {
    if (count > maxBadSamples)
      reasons.push(`${run} would skip ${recordsOf(count)}, data.maxBadSamples is ${maxBadSamples}`);
  }
  return reasons;
}

function recordsOf(count: number, which = ""): string {
  return `${count} ${which}${count === 1 ? "record" : "records"}`;
}
