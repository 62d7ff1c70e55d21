/** What decides which passes of a run share features of pictures and videos. */

import type { Parameter } from "../model/parameter.ts";
import { fingerprint } from "./checkpoint.ts";
import type { Session } from "./session.ts";

/** Whether some question may be asked in two steps of a run. */
export function questionsRecur(run: Pick<Session, "config" | "steps" | "samples">): boolean {
  const { questionsPerStep, resampleRounds } = run.config.trainer;
  return resampleRounds > 0 || run.steps * questionsPerStep > run.samples.length;
}

/** Of the vision tower among these parameters; `before` as in fingerprint(). */
export function towerFingerprint(parameters: readonly Parameter[], before?: string): string {
  return fingerprint(
    parameters.filter(({ name }) => name.startsWith("visual.")),
    before,
  );
}
