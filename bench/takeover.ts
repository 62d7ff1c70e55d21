/**
 * Whether ranks should take over completions that wait at others, from a model: rollouts of a 7B policy with measured times of steps, prompts and updates,
 * lengths that are log-normal. Printed as a table: seconds of a step, and by how much of it a rollout would be shorter at best. No GPU, no model.
 *
 *   npm run bench -- takeover [--ranks 2,8] [--questions 8,16,32,64] [--rows 64,128,256] [--group 8] [--prompt 954] [--mean 128] [--cap 256]
 *                             [--sigma 0.5] [--alike 0.5] [--slots 4] [--draws 8]
 *
 * --questions: of each rank. --rows: rollout.maxConcurrent. --slots: completions admitted for each row. --alike: part of the variance of the lengths'
 * logarithm that completions of a question share.
 */

import { parseArgs } from "node:util";
import { gains } from "./lib/takeover-table.ts";

const { values } = parseArgs({
  options: {
    ranks: { type: "string", default: "2,8" },
    questions: { type: "string", default: "8,16,32,64" },
    rows: { type: "string", default: "64,128,256" },
    group: { type: "string", default: "8" },
    prompt: { type: "string", default: "954" },
    mean: { type: "string", default: "128" },
    cap: { type: "string", default: "256" },
    sigma: { type: "string", default: "0.5" },
    alike: { type: "string", default: "0.5" },
    slots: { type: "string", default: "4" },
    draws: { type: "string", default: "8" },
  },
});
const list = (text: string) => text.split(",").map(Number);
const say = (...cells: (string | number)[]) => process.stdout.write(`| ${cells.join(" | ")} |\n`);

say(
  "ranks",
  "questions a rank",
  "rows",
  "step, s",
  "rollout, s",
  "question",
  "completion",
  "lengths known",
  "bound",
  "update waits",
);
say(...Array(10).fill("---"));
for (const ranks of list(values.ranks)) {
  for (const questions of list(values.questions)) {
    for (const rows of list(values.rows)) {
      const { waits, stepS, rolloutS, less, updateWaitS } = gains({
        ...{ ranks, questions, rows, group: Number(values.group) },
        ...{ slotsPerRow: Number(values.slots), promptTokens: Number(values.prompt), draws: Number(values.draws) },
        lengths: {
          mean: Number(values.mean),
          sigma: Number(values.sigma),
          cap: Number(values.cap),
          alike: Number(values.alike),
        },
      });
      const share = (part: number) => `${Math.max(0, (100 * part) / stepS).toFixed(1)} %`;
      const taken = waits ? [share(less.question), share(less.completion)] : ["nothing waits", "nothing waits"];
      const seconds = [stepS.toFixed(2), rolloutS.toFixed(2)];
      say(ranks, questions, rows, ...seconds, ...taken, share(less.known), share(less.bound), share(updateWaitS));
    }
  }
}
