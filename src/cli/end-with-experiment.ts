import { LAUNCHER } from "../distributed/launcher.ts";
import { EXPERIMENT } from "../experiment/run.ts";

/** A run of a sweep or an ablation ends with it, also where that is killed: the next one makes the run again. */
export async function endWithExperiment(): Promise<void> {
  const experiment = process.env[EXPERIMENT];
  if (experiment === undefined || process.env[LAUNCHER] !== undefined) return; // a rank ends with its launcher
  const { endWithParent } = await import("../torch/distributed.ts");
  endWithParent(Number(experiment));
  process.env[EXPERIMENT] = String(process.pid); // processes of an evaluation end with this one, their parent
}
