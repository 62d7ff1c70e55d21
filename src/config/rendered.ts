/** Knobs of the rendered data set and of the small policy that learns from it. */
import { z } from "zod";
import { fraction, positive } from "./numbers.ts";

/** Sizes of the rendered data set (`make-dataset`). */
export const rendered = z.strictObject({
  trainVideos: positive().default(400).meta({ description: "Training videos." }),
  questionsPerVideo: positive()
    .default(12)
    .meta({ description: "Training questions per video, with other recipes to finish." }),
  sftVideos: positive().default(160).meta({ description: "Training videos that have chains of thought." }),
  sftLateShare: fraction().default(0.05).meta({
    description:
      "Share of them in which three or four pieces are placed; the rest show one or two, so that SFT leaves something to find out.",
  }),
  sftGuessShare: fraction().default(0.25).meta({
    description:
      "Share of the chains of thought that name a step at random; keeps the policy unsure, so that GRPO has something to choose from.",
  }),
  sftRecords: positive().default(9600).meta({ description: "Questions about those videos with a chain of thought." }),
  L1: positive().default(240).meta({ description: "Held-out questions in the training environment." }),
  L2: positive().default(120).meta({ description: "Questions in other environments." }),
  L3: positive().default(120).meta({
    description: "Questions in another environment, with goals and recipes never trained on.",
  }),
});

/** Shape of a small policy that starts from random weights (`quickstart`). */
export const tinyModel = z.strictObject({
  hiddenSize: positive().default(128).meta({ description: "Width of the language model." }),
  intermediateSize: positive().default(256).meta({ description: "Width of its MLP." }),
  layers: positive().default(3).meta({ description: "Layers of the language model." }),
  heads: positive().default(8).meta({ description: "Query heads." }),
  kvHeads: positive().default(4).meta({ description: "Key/value heads." }),
  ropeTheta: z.number().positive().default(100).meta({
    description: "Base of the rotary frequencies; low, since prompts are short and must be found by position.",
  }),
  initializerRange: z.number().positive().default(0.1).meta({
    description: "Standard deviation of the random weights; 0.02 [Qwen2-VL] is too small for a model this narrow.",
  }),
  visionWidth: positive().default(64).meta({ description: "Width of the vision tower." }),
  visionLayers: positive().default(2).meta({ description: "Layers of the vision tower." }),
  visionHeads: positive().default(2).meta({ description: "Heads of the vision tower." }),
});
