/**
 * What this process is at, in a word or two: "step 5" and "rollout". Whoever does something that may take long says so; a rank of a job tells it to the
 * others, which name it where this rank dies or hangs.
 */

let step: number | undefined;
let listener: (text: string) => void = () => {};

/** From now on `heard` is told. */
export function onOperation(heard: (text: string) => void): void {
  listener = heard;
}

/** The step that begins, counted from 1. */
export function beginStep(number: number): void {
  step = number;
  listener(`step ${number}`);
}

export function beginOperation(name: string): void {
  listener(step === undefined ? name : `step ${step}, ${name}`);
}
