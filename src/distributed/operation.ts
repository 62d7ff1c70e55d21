/**
 * What this process is at, in a word or two: "step 5" and "rollout". Whoever does something that may take long says so; a rank of a job tells it to the
 * others, which name it where this rank dies or hangs.
 */

/** So long a rank that has failed, and said so, may take to save what it can. */
export const CLOSING_MS = 15_000;

let step: number | undefined;
const listeners = new Set<(text: string) => void>();

/** From now on `heard` is told, until what is returned is called. */
export function onOperation(heard: (text: string) => void): () => void {
  listeners.add(heard);
  return () => listeners.delete(heard);
}

/** The step that begins, counted from 1. */
export function beginStep(number: number): void {
  step = number;
  tell(`step ${number}`);
}

export function beginOperation(name: string): void {
  tell(step === undefined ? name : `step ${step}, ${name}`);
}

function tell(text: string): void {
  for (const heard of listeners) heard(text);
}
