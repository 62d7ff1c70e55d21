/**
 * Whether a completion's reasoning comes to the answer it gives, by rules instead of GRPO-CARE's judge model (arXiv:2506.16141, "consistency rate"). For
 * multiple choice: of the options that the reasoning names, by letter or by text, the last one is what it concludes.
 *
 * Exact for the chains of thought of the rendered data set. Elsewhere the rule reads no sense: of "not B" it hears B; an option in other words goes
 * unheard, and a reasoning that names the right option for no reason passes. What it cannot tell is `undecided`, not guessed.
 */

import type { ChatMessage } from "../types.ts";
import { extractAnswer } from "./extract-answer.ts";

export type Consistency = "consistent" | "inconsistent" | "undecided";

export interface Option {
  letter: string;
  text: string;
}

/** undecided: no options, no answer among them, or a reasoning that names none. */
export function consistencyOf(completion: string, options: readonly Option[]): Consistency {
  const answer = answerOf(completion, options);
  const reasoning = reasoningOf(completion);
  if (answer === null || reasoning === null) return "undecided";
  const concluded = renderedConclusions(reasoning, options) ?? lastNamed(reasoning, options);
  if (concluded === null) return "undecided";
  return concluded.every((letter) => letter === answer) ? "consistent" : "inconsistent";
}

/** The lettered options of a question's text, lines `A. put the pan down` from A on; of several lists the last one. */
export function optionsIn(question: string): Option[] {
  let options: Option[] = [];
  for (const [, letter = "", text = ""] of question.matchAll(/^([A-Z])\. (.*)$/gm)) {
    if (letter === "A") options = [];
    if (letter === String.fromCharCode(65 + options.length)) options.push({ letter, text: text.trim() });
  }
  return options;
}

/** The text of a chat's last turn. */
export function questionOf(messages: readonly ChatMessage[]): string {
  const content = messages.at(-1)?.content ?? "";
  if (typeof content === "string") return content;
  return content.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");
}

/** What comes before the answer block, without the tags around it; null where there is none or it is empty. */
function reasoningOf(completion: string): string | null {
  const end = completion.indexOf("<answer>");
  const text = completion.slice(0, Math.max(0, end)).replace(/<\/?think>/g, " ");
  return text.trim() === "" ? null : text;
}

/** The option that the first answer block names: by its letter standing by itself, or by its text. */
function answerOf(completion: string, options: readonly Option[]): string | null {
  const answer = extractAnswer(completion) ?? "";
  const letter = /^\(?([A-Z])(?![\p{L}\p{N}])/u.exec(answer)?.[1];
  const plain = (text: string) => text.toLowerCase().replace(/[\s.]+$/, "");
  const found = options.find((option) => option.letter === letter || plain(option.text) === plain(answer));
  return found?.letter ?? null;
}

/**
 * The rendered data set's wording, `next step 3 green B`, of options such as `green ring next`: what its colour and its letter come to, which are
 * two conclusions where they differ. A colour that no option has concludes something else ("").
 */
function renderedConclusions(reasoning: string, options: readonly Option[]): string[] | null {
  if (options.length === 0 || !options.every(({ text }) => /^\w+ \w+ next$/.test(text))) return null;
  const last = [...reasoning.matchAll(/\bnext step \d+ (\w+)(?: ([A-Z])\b)?/g)].at(-1);
  if (last === undefined) return null;
  const [, colour, letter] = last;
  const named = options.filter(({ text }) => text.startsWith(`${colour} `));
  const byColour = named.length === 1 ? (named[0] as Option).letter : "";
  return letter === undefined ? [byColour] : [byColour, letter];
}

function lastNamed(reasoning: string, options: readonly Option[]): [string] | null {
  let last: { start: number; end: number; letter: string } | null = null;
  for (const { letter, text } of options) {
    for (const [start, end] of [...lettersIn(reasoning, letter), ...textsIn(reasoning, text)]) {
      // Of two that end together the longer one is meant: "open the red door" is not "red door".
      if (last === null || end > last.end || (end === last.end && start < last.start)) last = { start, end, letter };
    }
  }
  return last === null ? null : [last.letter];
}

/** Where a letter stands by itself. `A` and `I` that begin a sentence are words, unless what follows says otherwise. */
function* lettersIn(text: string, letter: string): Generator<[start: number, end: number]> {
  const isWord = letter === "A" || letter === "I";
  for (const { index } of text.matchAll(new RegExp(`(?<![\\p{L}\\p{N}'’])${letter}(?![\\p{L}\\p{N}'’])`, "gu"))) {
    const begins = /(?:^|[.!?\n])\s*$/.test(text.slice(Math.max(0, index - 20), index));
    const after = text.slice(index + 1, index + 20);
    if (isWord && (begins || letter === "I") && /^\s+\p{Ll}/u.test(after) && !/^\s+(?:is|fits|seems)\b/.test(after))
      continue;
    yield [index, index + 1];
  }
}

/** Where an option's words stand one after the other, whatever is between them and in whatever case. */
function* textsIn(text: string, option: string): Generator<[start: number, end: number]> {
  const words = option.match(/[\p{L}\p{N}]+/gu) ?? [];
  if (words.length === 0) return;
  const pattern = `(?<![\\p{L}\\p{N}])${words.join("[^\\p{L}\\p{N}]+")}(?![\\p{L}\\p{N}])`;
  for (const { index, 0: found } of text.matchAll(new RegExp(pattern, "giu"))) yield [index, index + found.length];
}
