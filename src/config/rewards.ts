/** The knobs of one reward function: built in, a module of the user's own, or Python's, in a child process or behind HTTP. */

import { z } from "zod";

/** Up to what a timer can hold, 24 days: beyond that it would end at once. */
const seconds = () => z.number().positive().max(2_000_000);

export const BUILT_IN_REWARDS: readonly string[] = ["accuracy", "format", "math", "consistency"];

/** What becomes of completions that a function gives no usable reward for. */
export const ON_ERROR = ["stop", "zero", "skip"] as const;

export const rewardFunction = z.strictObject({
  name: z
    .string()
    .min(1)
    .meta({ description: "accuracy, format, math, consistency, or any name for a function of your own." }),
  path: z.string().optional().meta({
    description: "A TS or JS module whose default export is a reward function; it runs in a thread of its own.",
  }),
  python: z.string().optional().meta({
    description:
      "A Python function with TRL's signature, `file.py:function` or `package.module:function`; it runs in a process of its own.",
  }),
  interpreter: z.string().optional().meta({
    description: "The program that runs `python`, such as an environment's bin/python.",
    follows: "`python3`",
  }),
  url: z.string().optional().meta({
    description: "A reward server's address, such as http://host:8000/function; docs/rewards.md has the wire format.",
  }),
  weight: z.number().default(1).meta({ description: "Factor in the sum of rewards; 0 = only logged." }),
  call: z.enum(["batch", "completion"]).default("batch").meta({
    description:
      "A module's function is called once with all completions of a step (of a rank), or once for each, all at the same time.",
  }),
  timeoutS: seconds().default(60).meta({
    description:
      "A call of a function of your own that takes longer, in seconds, has failed; its thread or process is ended and started again.",
  }),
  startTimeoutS: seconds().default(300).meta({
    description: "Limit on loading a module, on a Python function's imports and on a reward server's first reply.",
  }),
  onError: z.enum(ON_ERROR).default("stop").meta({
    description:
      "Where a function of your own throws, hangs or returns nonsense: stop the run, count 0, or count as if it did not apply (skip); the latter two are logged and counted in reward/<name>/errors.",
  }),
  retries: z.number().int().nonnegative().default(3).meta({
    description: "How often a request to `url` is sent again where the network or the server fails, within timeoutS.",
  }),
  memoryMib: z.number().int().min(16).default(2048).meta({
    description:
      "Limit on the JavaScript heap of a module's thread; beyond it the thread ends, and the call has failed.",
  }),
});

export type RewardFunctionConfig = z.infer<typeof rewardFunction>;

/** Whether a function is the user's own, not built in. */
export function isOwn({ path, python, url }: RewardFunctionConfig): boolean {
  return path !== undefined || python !== undefined || url !== undefined;
}
