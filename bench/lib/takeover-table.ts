/** What ranks that take over each other's completions could gain, in a step of a 7B policy: measured parts, modelled rollouts (takeover-model.ts). */

import { normal } from "../../src/random.ts";
import { balancedOwners } from "../../src/trainer/question-shares.ts";
import { type Costs, type RolloutCase, simulate, type TakeOver } from "./takeover-model.ts";

/** Measured on one H200, 7B, prompts of 931 tokens (docs/performance.md): seconds. */
export const MEASURED = {
  /** Of a decode step by its rows; between and beyond two of them a straight line. */
  stepS: [
    [64, 0.00429],
    [128, 0.005534],
  ],
  prefillS: 0.23 / 8,
  /** Of reference, forward and backward: of a question, and of each token sampled for it. */
  question: { fixedS: 0.126, tokenS: (0.32 - 0.223) / 1024 },
  optimizerS: 0.05,
} as const;

/** Assumed: what another rank hands on, bytes a second, between GPUs and from host memory; 16 frames and an image as patches, and keys and values of 7B. */
export const ASSUMED = { gpuBytesPerS: 100e9, hostBytesPerS: 5e9, patchBytes: 14e6, tokenBytes: 57_344 } as const;

export interface Setting {
  ranks: number;
  questions: number; // of each rank
  group: number;
  rows: number;
  slotsPerRow: number;
  promptTokens: number;
  /** Lengths of completions: log-normal, capped; `alike` is the part of the logarithm's variance that completions of a question share. */
  lengths: { mean: number; sigma: number; cap: number; alike: number };
  draws: number; // of lengths, steps over which figures are means
}

/** Means over draws, seconds of a step and of its rollout as the slowest rank has them. */
export interface Gains {
  waits: boolean; // whether a rank has more completions than slots, or than rows
  stepS: number;
  rolloutS: number;
  /**
   * Seconds less than that. `known`: were the lengths known before the step, and the questions divided by them; `bound`: were every row of every rank busy
   * until the last completion ends.
   */
  less: { question: number; completion: number; known: number; bound: number };
  /** Seconds for which the ranks wait for the one with most tokens to update, which no takeover changes. */
  updateWaitS: number;
}

const LIMITS = [1, 4, 16, Number.POSITIVE_INFINITY]; // of how often is taken: the best of them counts

export function gains(setting: Setting): Gains {
  const { ranks, questions, group, rows, slotsPerRow, draws } = setting;
  const used = Math.min(rows, questions * group);
  const slots = Math.min(slotsPerRow * used, questions * group);
  const costs = costsOf(used, setting.promptTokens);
  const waits = questions * group > used;
  const sum = { stepS: 0, rolloutS: 0, question: 0, completion: 0, known: 0, bound: 0, updateWaitS: 0 };
  for (let draw = 0; draw < draws; draw++) {
    const lengths = lengthsOf(setting, draw);
    const rollout = (takeOver: TakeOver, takes: number, shares = lengths) =>
      Math.max(...simulate({ lengths: shares, rows: used, slots, costs, takeOver, takes }).endS);
    const alone = rollout("none", 0);
    const best = (what: TakeOver) => (waits ? Math.min(alone, ...LIMITS.map((takes) => rollout(what, takes))) : alone);
    const tokens = lengths.map((share) => share.flat().reduce((a, b) => a + b, 0));
    const all = tokens.reduce((a, b) => a + b, 0);
    const updates = tokens.map((own) => questions * MEASURED.question.fixedS + own * MEASURED.question.tokenS);
    const update = Math.max(...updates);
    sum.stepS += alone + update + MEASURED.optimizerS;
    sum.rolloutS += alone;
    sum.question += alone - best("question");
    sum.completion += alone - best("completion");
    sum.known += alone - Math.min(alone, rollout("none", 0, dividedByLength(lengths)));
    sum.bound += alone - leastSeconds(lengths, all, used, costs);
    sum.updateWaitS += update - updates.reduce((a, b) => a + b, 0) / ranks;
  }
  const { stepS, rolloutS, question, completion, known, bound, updateWaitS } = Object.fromEntries(
    Object.entries(sum).map(([name, total]) => [name, total / draws]),
  ) as typeof sum;
  return { waits, stepS, rolloutS, less: { question, completion, known, bound }, updateWaitS };
}

/** [rank][question][completion] tokens of one step, a function of the draw and of whose they are. */
function lengthsOf({ ranks, questions, group, lengths }: Setting, draw: number): number[][][] {
  const { mean, sigma, cap, alike } = lengths;
  const length = (rank: number, question: number, item: number) => {
    const shared = normal("takeover question", draw, rank, question);
    const own = normal("takeover completion", draw, rank, question, item);
    const z = Math.sqrt(alike) * shared + Math.sqrt(1 - alike) * own;
    return Math.min(cap, Math.max(1, Math.round(Math.exp(Math.log(mean) - sigma ** 2 / 2 + sigma * z))));
  };
  const range = (count: number) => [...Array(count).keys()];
  return range(ranks).map((r) => range(questions).map((q) => range(group).map((i) => length(r, q, i))));
}

function dividedByLength(lengths: RolloutCase["lengths"]): number[][][] {
  const questions = lengths.flat().map((group) => [...group]);
  const sizes = questions.map((group) => group.reduce((a, b) => a + b, 0));
  const owners = balancedOwners(sizes, lengths.length);
  return lengths.map((_, rank) => questions.filter((_, place) => owners[place] === rank));
}

/** No way of sharing out is faster: a row gives a token a step, a completion's tokens come one after the other, each prompt is computed once. */
function leastSeconds(lengths: RolloutCase["lengths"], tokens: number, rows: number, costs: Costs): number {
  const questions = lengths.flat();
  const drawn = tokens - questions.flat().length; // the first one of each comes from its prompt
  const steps = Math.max(drawn / (lengths.length * rows), ...questions.flat().map((length) => length - 1));
  return (questions.length / lengths.length) * costs.prefillS + steps * costs.stepS;
}

export function costsOf(rows: number, promptTokens: number): Costs {
  const [[few, fast], [many, slow]] = MEASURED.stepS;
  const { gpuBytesPerS, hostBytesPerS, patchBytes, tokenBytes } = ASSUMED;
  return {
    stepS: fast + ((rows - few) / (many - few)) * (slow - fast),
    prefillS: MEASURED.prefillS,
    sendS: {
      patches: patchBytes / hostBytesPerS,
      prompt: (promptTokens * tokenBytes) / gpuBytesPerS,
      token: tokenBytes / gpuBytesPerS,
    },
  };
}
