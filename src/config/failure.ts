/** Knobs of how a job finds out that something is wrong with it. */

import { z } from "zod";

export const failureKnobs = {
  timeoutS: z
    .number()
    .positive()
    .default(1800)
    .meta({ description: "A rank that the others wait for so long, in seconds, has failed: the job ends." }),
  heartbeatS: z.number().positive().default(30).meta({
    description:
      "A rank that gives no sign of life for so long, in seconds, has died: the others end. The signs come from a thread that no work holds up.",
  }),
  stallS: z.number().nonnegative().default(45).meta({
    description:
      "A process that gets nothing done for so long, in seconds, hangs: it says where and ends, and the job with it. Waiting for other ranks does not count, nor do disks. 0: never.",
  }),
};
