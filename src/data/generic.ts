/** The plain record: `{ id?, video?, image?, question, options?, answer, response?, ... }`; media are a path or a list of them. */

import { isAbsolute, join } from "node:path";
import { shuffled } from "../random.ts";
import type { ContentPart, Sample } from "../types.ts";
import type { Fields, ReadContext } from "./fields.ts";
import { goldLetter, letteredOptions, letterOf } from "./question.ts";

/**
 * With `options`, `answer` is an option's text, its letter, or its number counted from 0, and the gold answer is a letter. Without, the gold
 * answer is the text of `answer`. Videos come before images, as in the seed's prompt.
 */
export function genericSample(fields: Fields, id: string, context: ReadContext): Sample {
  const place = (file: string) => (isAbsolute(file) ? file : join(context.mediaRoot, file));
  const content: ContentPart[] = [
    ...fields.textOrTexts("video").map((file) => ({ type: "video" as const, video: place(file) })),
    ...fields.textOrTexts("image").map((file) => ({ type: "image" as const, image: place(file) })),
  ];
  const question = fields.text("question");
  const { options, solution } = fields.has("options") ? choice(fields, id, context) : open(fields);
  content.push({ type: "text", text: context.template(question, letteredOptions(options)) });
  return {
    id,
    messages: [{ role: "user", content }],
    solution,
    ...(fields.has("response") ? { response: fields.text("response") } : {}),
    fields: options.length > 0 ? { ...fields.record, options } : fields.record,
    source: context.source,
  };
}

function open(fields: Fields): { options: string[]; solution: string } {
  return { options: [], solution: `<answer>${fields.scalar("answer")}</answer>` };
}

function choice(fields: Fields, id: string, context: ReadContext): { options: string[]; solution: string } {
  const options = fields.texts("options");
  if (options.length < 2 || options.length > 26) fields.fail("options", "a list of 2 to 26 strings");
  const gold = goldIndex(fields, options);
  if (!context.shuffleOptions) return { options, solution: goldLetter(gold) };
  const order = shuffled(options, context.seed, id, "options");
  return { options: order, solution: goldLetter(order.indexOf(options[gold]!)) };
}

function goldIndex(fields: Fields, options: readonly string[]): number {
  const { answer } = fields.record;
  const index = typeof answer === "number" ? answer : options.indexOf(fields.text("answer"));
  const letters = options.map((_, i) => letterOf(i));
  const gold = index >= 0 ? index : letters.indexOf(fields.text("answer").replace(/\.$/, ""));
  if (!Number.isInteger(gold) || options[gold] === undefined) {
    fields.fail("answer", `an option, a letter ${letters[0]} to ${letters.at(-1)} or a number below ${options.length}`);
  }
  return gold;
}
