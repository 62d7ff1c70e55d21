/** The knobs that say which checkpoints stay because they are good, beside those that stay because they are new (trainer.keepLast). */

import { z } from "zod";
import { nearest } from "./nearest.ts";

export const bestKnobs = {
  keepBest: z.number().int().nonnegative().default(0).meta({
    description:
      "Checkpoints kept besides the keepLast newest, those that are best by trainer.bestMetric, of equal ones the newer; `best` in the run folder points to the best of them: its model is `best/model`, of a run with `lora` its adapter `best/adapter`. 0 = none.",
  }),
  bestMetric: z.string().min(1).optional().meta({
    description:
      "Metric of a checkpoint's own step that says how good it is; one without it is never among the best. Default: accuracy of the first evaluation set with trainer.evalEvery (a multiple of it for trainer.saveEvery gives every checkpoint one), else reward/mean (GRPO) or loss/sft (SFT).",
  }),
  bestGoal: z.enum(["maximize", "minimize"]).optional().meta({
    description: "Whether more of that metric is better; default: minimize for loss/..., maximize for others.",
  }),
};

interface BestConfig {
  data: { eval: Readonly<Record<string, unknown>> };
  trainer: {
    keepBest: number;
    bestMetric?: string | undefined;
    bestGoal?: "maximize" | "minimize" | undefined;
    evalEvery: number;
  };
}

/** By which metric checkpoints are compared. */
export interface BestRule {
  count: number; // how many stay
  metric: string;
  goal: "maximize" | "minimize";
}

/** The rule of a run, with what it leaves unset filled in. */
export function bestRule({ data, trainer }: BestConfig, stage: "grpo" | "sft"): BestRule {
  const level = trainer.evalEvery > 0 ? Object.keys(data.eval)[0] : undefined;
  const usual = level !== undefined ? `eval/${level}/accuracy` : stage === "grpo" ? "reward/mean" : "loss/sft";
  const metric = trainer.bestMetric ?? usual;
  const goal = trainer.bestGoal ?? (metric.startsWith("loss/") ? "minimize" : "maximize");
  return { count: trainer.keepBest, metric, goal };
}

/** Why a checkpoint with these metrics has no number to be compared by. */
export function whyUnrated(metric: string, metrics: Readonly<Record<string, unknown>>): string {
  const names = Object.keys(metrics);
  if (names.includes(metric)) return "it is not finite";
  if (/^eval\//.test(metric) && !names.some((name) => name.startsWith("eval/")))
    return "the step was not evaluated: trainer.saveEvery is no multiple of trainer.evalEvery, or the run was stopped";
  const close = nearest(metric, names);
  return close === undefined ? `its step has ${names.join(", ")}` : `its step has none; did you mean ${close}?`;
}

/** A metric of an evaluation that is never made would leave nothing to compare by. */
export function checkBest(
  { data, trainer }: BestConfig,
  refuse: (wrong: boolean, knob: string, problem: string) => void,
): void {
  const { keepBest, bestMetric = "", evalEvery } = trainer;
  const level = /^eval\/([^/]+)\//.exec(bestMetric)?.[1];
  if (keepBest === 0 || level === undefined) return;
  refuse(evalEvery === 0, "trainer.bestMetric", `${bestMetric} needs trainer.evalEvery, which is 0`);
  const levels = Object.keys(data.eval);
  refuse(
    !levels.includes(level),
    "trainer.bestMetric",
    `${level} is not a set of data.eval, which has ${levels.join(", ") || "none"}`,
  );
}
