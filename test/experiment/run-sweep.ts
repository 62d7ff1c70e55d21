/** A sweep in a process of its own, to be killed: `node --import tsx test/experiment/run-sweep.ts <file.yaml>`. Prints a line per trial. */

import { runSweep } from "../../src/experiment/sweep.ts";
import { readSweep } from "../../src/experiment/sweep-spec.ts";
import { FAKE, slots } from "./helpers.ts";

await runSweep(readSweep(process.argv[2] as string), {
  program: FAKE,
  slots: slots(1),
  signal: new AbortController().signal,
  onTrial: ({ trial }) => process.stdout.write(`trial ${trial}\n`),
});
process.stdout.write("finished\n");
