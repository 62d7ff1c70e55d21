import { LAUNCHER, starterOf } from "../distributed/starter.ts";
import { EXPERIMENT } from "../experiment/run.ts";

/** A run of a sweep or an ablation ends with it, also where that is killed: the next one makes the run again. */
export async function endWithExperiment(): Promise<void> {
  const experiment = starterOf(EXPERIMENT);
  if (experiment === undefined || starterOf(LAUNCHER) !== undefined) return; // a rank ends with its launcher
  const { endWithParent } = await import("../torch/distributed.ts");
  endWithParent(experiment);
  process.env[EXPERIMENT] = String(process.pid); // processes of an evaluation end with this one, their parent
}
