/** What one knob's own type and range cannot say: which knobs need each other, and what a command needs. */

import { ConfigError } from "../errors.ts";
import { checkBest } from "./best-checkpoints.ts";
import { checkAlgorithm } from "./check-algorithm.ts";
import { checkRewards } from "./check-rewards.ts";
import { checkTrained } from "./check-trained.ts";
import type { Config } from "./schema.ts";

export interface Problem {
  knob: string;
  problem: string;
}

/** Every contradiction in a config that is valid knob by knob; empty when there is none. */
export function checkConfig(config: Config): Problem[] {
  const { data, rewards, trainer, rendered, tinyModel } = config;
  const problems: Problem[] = [];
  const refuse = (wrong: boolean, knob: string, problem: string) => {
    if (wrong) problems.push({ knob, problem });
  };

  refuse(
    data.minFrames > data.maxFrames,
    "data.minFrames",
    `${data.minFrames} is more than maxFrames, ${data.maxFrames}`,
  );
  refuse(data.maxFrames < 2, "data.maxFrames", "a video needs at least 2 frames, one temporal patch");
  refuse(
    data.minPixels > data.maxPixels,
    "data.minPixels",
    `${data.minPixels} is more than maxPixels, ${data.maxPixels}`,
  );
  refuse(
    (data.resizedHeight === undefined) !== (data.resizedWidth === undefined),
    data.resizedHeight === undefined ? "data.resizedHeight" : "data.resizedWidth",
    "a fixed size needs both resizedHeight and resizedWidth",
  );

  checkRewards(rewards, refuse);
  for (const [section, { temperature }] of Object.entries({ rollout: config.rollout, eval: config.eval })) {
    const isUsable = temperature >= 1e-30 && temperature <= 1e30;
    refuse(
      !isUsable,
      `${section}.temperature`,
      `expected 1e-30 to 1e30, which float32 can divide by, got ${temperature}`,
    );
  }

  checkAlgorithm(config, refuse);
  checkBest(config, refuse);
  checkTrained(config, refuse);

  refuse(
    trainer.evalEvery > 0 && Object.keys(data.eval).length === 0,
    "trainer.evalEvery",
    "evaluation during training needs data.eval",
  );

  refuse(
    rendered.sftVideos > rendered.trainVideos,
    "rendered.sftVideos",
    `${rendered.sftVideos} is more than the ${rendered.trainVideos} training videos`,
  );
  refuse(tinyModel.hiddenSize % tinyModel.heads !== 0, "tinyModel.hiddenSize", "must be a multiple of heads");
  refuse(tinyModel.heads % tinyModel.kvHeads !== 0, "tinyModel.heads", "must be a multiple of kvHeads");
  refuse(
    tinyModel.visionWidth % tinyModel.visionHeads !== 0,
    "tinyModel.visionWidth",
    "must be a multiple of visionHeads",
  );
  return problems;
}

/** @throws ConfigError when a command lacks the data it works on. */
export function requireData(config: Config, need: "train" | "eval"): void {
  if (need === "train" && config.data.train.length === 0) {
    throw new ConfigError("data.train is empty: name at least one file of records to train on");
  }
  if (need === "eval" && Object.keys(config.data.eval).length === 0) {
    throw new ConfigError("data.eval is empty: name at least one evaluation set, such as data.eval.L1.file");
  }
}
