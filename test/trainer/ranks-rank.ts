/** One rank of ranks.test.ts: the training run that the JSON file of the first argument describes. */

import { readFileSync } from "node:fs";
import { configOfRank } from "../../src/cli/ranks.ts";
import type { Config } from "../../src/config/schema.ts";
import { readPlace } from "../../src/distributed/environment.ts";
import { ALONE, joinRanks } from "../../src/distributed/ranks.ts";
import { deviceCount, setDevice } from "../../src/torch/cuda.ts";
import { trainGrpo } from "../../src/trainer/grpo.ts";
import { trainSft } from "../../src/trainer/sft.ts";
import { gpuOfRank } from "../torch/gpus.ts";

export interface RankRun {
  stage: "grpo" | "sft";
  config: Config;
  resume: boolean;
}

const { stage, config, resume }: RankRun = JSON.parse(readFileSync(process.argv[2] as string, "utf8"));
const place = readPlace(process.env);
const nccl = config.device !== "cpu";
if (place !== null && nccl) setDevice(gpuOfRank(place.localRank));
const ranks = place === null ? ALONE : joinRanks(place, { nccl, timeoutMs: 300_000 });
const own = place === null ? config : { ...configOfRank(config, place, deviceCount()), threads: 1 };
const result = await (stage === "grpo" ? trainGrpo : trainSft)(own, { resume, ranks });
process.stdout.write(JSON.stringify(result));
await ranks.leave();
