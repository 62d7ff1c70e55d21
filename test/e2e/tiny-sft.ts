/** One training process: `node --import tsx test/e2e/tiny-sft.ts <config.yaml>`. */

import { loadConfig } from "../../src/config/load.ts";
import { trainSft } from "../../src/trainer/sft.ts";

await trainSft(loadConfig({ files: [process.argv[2] as string] }));
