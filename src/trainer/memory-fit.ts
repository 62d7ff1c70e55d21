/** Whether a run fits a device, how sure that is, and which knobs would make it fit: plain arithmetic, as all of the plan. */

import { needsReference } from "../config/care.ts";
import type { Config } from "../config/schema.ts";
import type { Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import {
  configOfRank,
  largestPack,
  type MemoryPart,
  memoryParts,
  type PlanSetting,
  peakBytes,
  type QuestionSize,
  type Stage,
  sumOf,
} from "./plan.ts";
import { cheapestThatFits, type RecomputeChoice, recomputeChoices, roomBeside } from "./recompute-plan.ts";

/** What is planned: a stage of a config with questions of a size on so many ranks; the size is null where prompts cannot be known. */
export interface Planned {
  stage: Stage;
  config: Config;
  shape: Qwen2VLConfig;
  size: QuestionSize | null;
  /** The least that questions and completions may come to, where `size` is the most; default: `size`. */
  shortest?: QuestionSize | null | undefined;
  ranks: number;
  records?: number | undefined;
  device: number | null; // bytes
}

export interface Fit {
  parts: MemoryPart[];
  /** What the largest pack computes again, where there is an update. */
  recompute: RecomputeChoice | null;
  /** Most bytes at a time by libtorch's allocator. */
  peak: number;
  /** The least that does, with what libraries take outside of it: less than the peak where model.recompute would rather fill the device. */
  needs: number;
  verdict: "fits" | "tight" | "cannot" | "unknown";
}

/**
 * How far the plan's peak may be off: on an H200 it was 0.1 % for 7B on one and on two GPUs (test/trainer/plan-measured.test.ts), and other settings
 * than those have not been measured.
 */
export const ERROR_SHARE = 0.05;

// Assumed, not measured: CUDA's context, kernels and the libraries' own memory; NCCL's channels.
const CUDA_BYTES = 2 ** 30;
const NCCL_BYTES = 2 ** 29;

/** What a process takes of its GPU beside libtorch's allocator. */
export function outsideBytes({ device }: Config, ranks: number): number {
  if (device === "cpu") return 0;
  return CUDA_BYTES + (ranks > 1 ? NCCL_BYTES : 0);
}

/** Where prompts are not known: by what is always there alone, which may be too much already. */
export function fitOf(planned: Planned): Fit {
  const { stage, config, shape, size, ranks, records, device } = planned;
  const known = size ?? { prompt: 0, vision: 0, completion: 0 };
  const setting: PlanSetting = { ranks, records, device };
  const levels = size === null || stage === "eval" ? null : levelsOf(stage, config, shape, size, setting);
  const partsWith = (level: RecomputeChoice | undefined) => {
    const all = memoryParts(stage, config, shape, known, { ...setting, recompute: level?.plan });
    return size === null ? all.filter(({ name }) => CERTAIN.has(name)) : all;
  };
  const parts = partsWith(levels?.chosen);
  const peak = peakBytes(parts);
  const least = peakBytes(partsWith(levels?.smallest));
  const needs = least + outsideBytes(config, ranks);
  const slack = ERROR_SHARE * least;
  const verdict =
    device === null
      ? "unknown"
      : needs - slack > device
        ? canBeShorter(planned)
          ? "tight"
          : "cannot"
        : size === null
          ? "unknown"
          : needs + slack > device
            ? "tight"
            : "fits";
  return { parts, recompute: levels?.chosen ?? null, peak, needs, verdict };
}

/** Whether shorter questions and completions than the longest that are allowed might fit. */
function canBeShorter({ shortest, ...planned }: Planned): boolean {
  return shortest != null && fitOf({ ...planned, size: shortest }).verdict !== "cannot";
}

const CERTAIN = new Set(["weights", "reference", "gradients", "optimizer"]);

/** What the run itself would choose (recompute-planner.ts), the cheapest that the room beside what is always there allows; and what it may choose. */
function levelsOf(
  stage: Stage,
  config: Config,
  shape: Qwen2VLConfig,
  size: QuestionSize,
  setting: PlanSetting,
): { chosen: RecomputeChoice; smallest: RecomputeChoice } {
  const { ranks = 1, device = null } = setting;
  const choices = recomputeChoices(largestPack(stage, configOfRank(config, ranks), shape, size), config, shape);
  const smallest = choices.at(-1) as RecomputeChoice;
  if (device === null) return { chosen: choices[0], smallest };
  const beside = sumOf(memoryParts(stage, config, shape, size, setting), "always") + outsideBytes(config, ranks);
  return { chosen: cheapestThatFits(choices, roomBeside.room(beside, device)), smallest };
}

/** A change of a config, or of the number of GPUs, that makes it fit. */
export interface Remedy {
  text: string;
  needs: number;
}

interface Change {
  text: string;
  apply: (planned: Planned) => Planned;
}

/**
 * What would make a config fit that does not, tried out: every change that does so by itself, those that cost least first; where none does, the
 * fewest of them together; and how many more GPUs do, with changes where it takes those too.
 */
export function remediesFor(planned: Planned): Remedy[] {
  if (planned.device === null) return [];
  const tried = changesOf(planned).flatMap(({ text, apply }) => remedyOf(text, apply(planned)));
  const together = tried.length > 0 ? null : leastOf(planned, changesOf(planned));
  const wider = moreRanks(planned).flatMap((ranks) => remedyOf(`${ranks} GPUs`, { ...planned, ranks }));
  const byKnobs = [...tried, ...(together === null ? [] : [together])];
  const found = [...byKnobs, ...wider.slice(0, 1), ...(byKnobs.length === 0 ? withAdapter(planned) : [])];
  if (found.length > 0) return found;
  for (const ranks of moreRanks(planned)) {
    const at = { ...planned, ranks };
    const both = leastOf(at, changesOf(at), `${ranks} GPUs`);
    if (both !== null) return [both];
  }
  return [];
}

/** The changes up to the first with which it fits, less those it fits without. */
function leastOf(planned: Planned, changes: readonly Change[], first?: string): Remedy | null {
  const applied = (some: readonly Change[]) => some.reduce((now, { apply }) => apply(now), planned);
  const fits = (some: readonly Change[]) => fitOf(applied(some)).verdict === "fits";
  const end = changes.findIndex((_, i) => fits(changes.slice(0, i + 1)));
  if (end === -1) return null;
  let least = changes.slice(0, end + 1);
  for (const change of [...least]) {
    const without = least.filter((one) => one !== change);
    if (fits(without)) least = without;
  }
  const text = [...(first === undefined ? [] : [first]), ...least.map((one) => one.text)].join(" and ");
  return remedyOf(text, applied(least))[0] ?? null;
}

function remedyOf(text: string, planned: Planned): Remedy[] {
  const { verdict, needs } = fitOf(planned);
  return verdict === "fits" ? [{ text, needs }] : [];
}

/** From what costs no result and little time to what does. */
function changesOf({ stage, config, shape, size, ranks }: Planned): Change[] {
  const changes: Change[] = [];
  const knob = <S extends keyof Config>(section: S, name: keyof Config[S] & string, value: unknown) => {
    changes.push({
      text: `${section}.${name}: ${value}`,
      apply: (now) => ({
        ...now,
        config: { ...now.config, [section]: { ...(now.config[section] as object), [name]: value } },
      }),
    });
  };
  const { distributed, model, optimizer, trainer, rollout, device } = config;
  const trains = stage !== "eval";
  if (trains && ranks > 1 && !distributed.shardGradients) knob("distributed", "shardGradients", true);
  if (
    stage === "grpo" &&
    ranks > 1 &&
    needsReference(trainer) &&
    config.lora === undefined &&
    !distributed.shardReference
  )
    knob("distributed", "shardReference", true);
  if (trains && model.recompute !== "auto" && model.recompute !== "layer") knob("model", "recompute", "auto");
  if (trains && size !== null) {
    const pack = { ...config, trainer: { ...trainer, tokensPerPack: 1 } };
    const { tokens } = largestPack(stage, pack, shape, size); // of one group
    if (tokens < largestPack(stage, configOfRank(config, ranks), shape, size).tokens)
      knob("trainer", "tokensPerPack", tokens);
  }
  if (stage !== "sft" && rollout.maxConcurrent > 8) {
    for (const most of [64, 32, 16, 8]) if (most < rollout.maxConcurrent) knob("rollout", "maxConcurrent", most);
  }
  if (stage === "eval") {
    for (const size of [16, 4, 1]) if (size < config.eval.batchSize) knob("eval", "batchSize", size);
    return changes;
  }
  if (device !== "cpu" && optimizer.offload === "none") knob("optimizer", "offload", "cpu");
  if (optimizer.moments === "float32") knob("optimizer", "moments", "bfloat16");
  if (optimizer.moments !== "int8") knob("optimizer", "moments", "int8");
  return changes;
}

/** An adapter in place of all parameters, with as few changes as it takes: another way to train, so it is named where no knob does. */
function withAdapter(planned: Planned): Remedy[] {
  if (planned.stage === "eval" || planned.config.lora !== undefined) return [];
  const at = ADAPTER.apply(planned);
  const alone = remedyOf(ADAPTER.text, at);
  if (alone.length > 0) return alone;
  const together = leastOf(at, changesOf(at), ADAPTER.text);
  return together === null ? [] : [together];
}

/** What contradicts an adapter goes with it. */
const ADAPTER: Change = {
  text: "lora.rank: 16",
  apply: (now) => {
    const { model, trainer, optimizer, distributed } = now.config;
    const config = {
      ...now.config,
      lora: { rank: 16, alpha: 32, dropout: 0, rslora: false, parts: ["language" as const] },
      model: { ...model, recompute: model.recompute === "selective" ? ("auto" as const) : model.recompute },
      trainer: { ...trainer, freeze: [], referenceEvery: 0 },
      optimizer: { ...optimizer, partRates: {} },
      distributed: { ...distributed, shardReference: false },
    };
    return { ...now, config };
  },
};

/** Twice as many, and so on, as far as there are questions for them. */
function moreRanks({ config, ranks }: Pick<Planned, "config" | "ranks">): number[] {
  if (!/^cuda$/.test(config.device)) return [];
  const counts: number[] = [];
  for (let count = 2 * ranks; count <= Math.min(64, config.trainer.questionsPerStep); count *= 2) counts.push(count);
  return counts;
}
