/** Which passes of a run take features of pictures and videos from where. */

import type { Parameter } from "../model/parameter.ts";
import type { Qwen2VL } from "../model/qwen2vl/model.ts";
import { fingerprint } from "./checkpoint.ts";
import type { Session } from "./session.ts";
import { VisionFeatures } from "./vision-features.ts";

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

/**
 * Where the reference's features come from: the policy's tower where that is frozen and the same, from what is kept of the reference's own where
 * questions recur; null: each pass computes its own.
 */
export function referenceFeatures(
  { features, model }: Pick<Session, "features" | "model">,
  reference: Qwen2VL,
  recur: boolean,
): VisionFeatures | null {
  if (features !== null && towerFingerprint(model.parameters) === towerFingerprint(reference.parameters))
    return features;
  return recur ? new VisionFeatures(reference) : null;
}
