/** The knobs of `eval`: how models are asked, and by what their answers are judged. */

import { z } from "zod";
import { positive, temperature, topShare } from "./numbers.ts";

export const evaluation = z.strictObject({
  reward: z
    .enum(["accuracy", "math"])
    .default("accuracy")
    .meta({ description: "What an answer counts as right by: a built-in reward, 1 or 0 [seed: accuracy]." }),
  maxNewTokens: positive().default(256).meta({ description: "Longest answer in tokens [seed: 256]." }),
  greedy: z
    .boolean()
    .default(true)
    .meta({ description: "Take the likeliest token [seed: top_k 1 by generation_config]." }),
  temperature: temperature("eval.greedy: true").meta({ description: "Used when greedy is false." }),
  topK: z.number().int().nonnegative().default(0).meta({ description: "Used when greedy is false." }),
  topP: topShare().default(1).meta({ description: "Used when greedy is false." }),
  batchSize: positive().default(64).meta({ description: "Questions decoded together." }),
  consistency: z.boolean().default(false).meta({
    description:
      "Also count how often the reasoning names the option that is answered, by a rule; for multiple choice. Changes no answer.",
  }),
});
