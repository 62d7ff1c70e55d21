/** LongVideoBench's questions (its lvb_val.json, a JSON list): one video, two to five candidates, the number of the right one. */

import { join } from "node:path";
import { shuffled } from "../random.ts";
import type { Sample } from "../types.ts";
import type { Fields, ReadContext } from "./fields.ts";
import { goldLetter, letteredOptions, letterOf } from "./question.ts";

/**
 * `question`, `candidates`, `correct_choice` (counted from 0), `video_path` below `<root>/videos`; the seed's wording, without subtitles and
 * without an image, as its infer.py asks these questions. Candidates keep their order unless `shuffleOptions` is set. `duration`,
 * `duration_group` and all other fields are kept in `fields`.
 */
export function longVideoBenchSample(fields: Fields, id: string, context: ReadContext): Sample {
  const candidates = fields.texts("candidates");
  if (candidates.length < 2 || candidates.length > 5) fields.fail("candidates", "a list of 2 to 5 strings");
  const { correct_choice: correct } = fields.record;
  if (!Number.isInteger(correct) || candidates[correct as number] === undefined) {
    fields.fail("correct_choice", `a whole number from 0 to ${candidates.length - 1}`);
  }
  const positions = [...candidates.keys()];
  const order = context.shuffleOptions ? shuffled(positions, context.seed, id, "options") : positions;
  const options = order.map((position) => candidates[position] as string);
  const gold = order.indexOf(correct as number);
  const video = join(context.mediaRoot, "videos", fields.text("video_path"));
  const text = context.template(fields.text("question"), letteredOptions(options));
  return {
    id,
    messages: [
      {
        role: "user",
        content: [
          { type: "video", video },
          { type: "text", text },
        ],
      },
    ],
    solution: goldLetter(gold),
    fields: { ...fields.record, options, gold: letterOf(gold) },
    source: context.source,
  };
}
