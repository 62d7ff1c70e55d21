/** The words of the rendered data set, for training a tokenizer on them. */

import { letteredOptions, seedPrompt } from "../question.ts";
import { CHAT_FRAME } from "../tokenizer-training.ts";
import { COLOURS, HELD_OUT_DOMAINS, SHAPES, TRAINING_GOALS } from "./recipe.ts";
import { planVideo, sftRecord, validationRecord } from "./records.ts";

/**
 * Prompts and responses as training sees them, and every colour, shape and name, those held out of training included: L3's words are
 * whole tokens, only never trained ones. The same text whatever the sizes and seed of the data set, so that models fit all of them.
 */
export function renderedCorpus(): string[] {
  const words = [
    ...COLOURS,
    ...SHAPES,
    ...TRAINING_GOALS,
    ...HELD_OUT_DOMAINS.flatMap((d) => d.scenarios.flatMap((s) => s.goals)),
  ];
  const texts = [CHAT_FRAME, ` ${words.join(" ")}`];
  for (let i = 0; i < 64; i++) {
    const record = sftRecord(planVideo(0, "train", i), 0);
    texts.push(record.response, ...record.prompt[0]!.content.map((part) => (part.type === "text" ? part.text : "")));
    const { question, choice_a, choice_b, choice_c, choice_d } = validationRecord(planVideo(0, "L3", i));
    texts.push(seedPrompt(question, letteredOptions([choice_a, choice_b, choice_c, choice_d])));
  }
  return texts;
}
