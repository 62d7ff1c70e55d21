/**
 * Records of SEED-Bench-R1's training_*.jsonl and validation_L*.jsonl: question, options and their answer, a progress video where the task has
 * begun, and an image of the current observation.
 */

import { join } from "node:path";
import { shuffled } from "../random.ts";
import type { ContentPart, Sample } from "../types.ts";
import type { Fields, ReadContext } from "./fields.ts";
import { goldLetter, letteredOptions, letterOf } from "./question.ts";

const LETTERS = ["A", "B", "C", "D"];
const NEGATIVES = 3; // drawn from the training records' negative_answers

/**
 * One record to a sample. Validation records have `choice_a`..`choice_d` and `golden_choice_idx` and keep their order unless
 * `shuffleOptions` is set; training records have `answer` and `negative_answers` and are always shuffled, or the answer would come first.
 * Both draws are keyed by (seed, sample id).
 */
export function seedBenchSample(fields: Fields, id: string, context: ReadContext): Sample {
  const { options, gold } = fields.has("golden_choice_idx")
    ? validation(fields, id, context)
    : training(fields, id, context);
  const source = fields.text("video_source");
  const content: ContentPart[] = [];
  const progress = fields.record.task_progress_metadata;
  if (progress !== undefined && progress !== null && !Array.isArray(progress))
    fields.fail("task_progress_metadata", "a list");
  // Without progress there is nothing to see before the observation: such samples have an image only.
  if (Array.isArray(progress) && progress.length > 0) {
    content.push({ type: "video", video: join(context.mediaRoot, "videos", source, fields.text("video_basename")) });
  }
  const image = fields.text("current_observation_basename");
  content.push({ type: "image", image: join(context.mediaRoot, "images", source, image) });
  content.push({ type: "text", text: context.template(fields.text("question"), letteredOptions(options)) });
  return {
    id,
    messages: [{ role: "user", content }],
    solution: goldLetter(gold),
    fields: { ...fields.record, options, gold: letterOf(gold) },
    source: context.source,
  };
}

function validation(fields: Fields, id: string, context: ReadContext): { options: string[]; gold: number } {
  const options = LETTERS.map((letter) => fields.scalar(`choice_${letter.toLowerCase()}`));
  const gold = LETTERS.indexOf(fields.text("golden_choice_idx"));
  if (gold < 0) fields.fail("golden_choice_idx", "one of A, B, C, D");
  if (!context.shuffleOptions) return { options, gold };
  const order = shuffled(options, context.seed, id, "options");
  return { options: order, gold: order.indexOf(options[gold]!) };
}

function training(fields: Fields, id: string, context: ReadContext): { options: string[]; gold: number } {
  const answer = fields.scalar("answer");
  const negatives = shuffled(fields.texts("negative_answers"), context.seed, id, "negatives").slice(0, NEGATIVES);
  if (negatives.length === 0) fields.fail("negative_answers", "a list of at least one string");
  const options = shuffled([answer, ...negatives], context.seed, id, "options");
  return { options, gold: options.indexOf(answer) };
}
