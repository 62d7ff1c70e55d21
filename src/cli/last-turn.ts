import type { Tokenizer } from "../data/tokenizer.ts";
import { InvariantError } from "../errors.ts";
import type { Sample } from "../types.ts";
import { wholeChat } from "./chat-samples.ts";

/** Ids of the last turn as the chat template closes it, without the line break that follows its end token. */
export function lastTurnIds(tokenizer: Tokenizer, sample: Sample): Int32Array {
  const before = tokenizer.chatText(sample.messages, { addGenerationPrompt: true });
  const whole = tokenizer.chatText(wholeChat(sample, { required: true }), { addGenerationPrompt: false });
  if (!whole.startsWith(before))
    throw new InvariantError("the chat template changes earlier turns when a turn is added");
  return tokenizer.encode(whole.slice(before.length).replace(/\n$/, ""));
}
