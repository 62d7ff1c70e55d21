/** A multiple-choice question as SEED-Bench-R1 writes it, and the gold answer its reward reads. */

/** Question and lettered options (already joined, "" for none) to the text of the user's turn. */
export type PromptTemplate = (question: string, options: string) => string;

/** The seed's wording, character for character, trailing space included (its grpo.py and infer.py). */
export const seedPrompt: PromptTemplate = (question, options) =>
  `${question}\n${options === "" ? "" : `${options}\n`} Output the thinking process in <think> </think> and final answer in <answer> </answer> tags, i.e., <think> reasoning process here </think><answer> answer here </answer>. `;

/** 0 -> "A", 25 -> "Z". */
export function letterOf(index: number): string {
  return String.fromCharCode(65 + index);
}

/** "A. first\nB. second". */
export function letteredOptions(options: readonly string[]): string {
  return options.map((option, i) => `${letterOf(i)}. ${option}`).join("\n");
}

/** What the accuracy reward compares with: `<answer>B.</answer>`. */
export function goldLetter(index: number): string {
  return `<answer>${letterOf(index)}.</answer>`;
}
