/**
 * Successive halving, in the form that stops trials and never pauses them (ASHA: Li et al., "A System for Massively Parallel
 * Hyperparameter Tuning", MLSys 2020, arXiv:1810.05934; Jamieson and Talwalkar, arXiv:1502.07943). Rungs lie at minSteps x factor^k
 * steps; a trial goes on past a rung if its value there is among the best 1/factor of those known at that rung.
 */

import { z } from "zod";

export const halvingSchema = z.strictObject({
  minSteps: z.number().int().positive().meta({ description: "The first rung: no trial is stopped before." }),
  factor: z
    .number()
    .int()
    .min(2)
    .default(3)
    .meta({ description: "One of so many goes on at a rung; each rung lies so many times further." }),
});

export type Halving = z.infer<typeof halvingSchema>;

/** The steps at which trials are judged: before the last step, which all of them that are left reach. */
export function rungsOf({ minSteps, factor }: Halving, steps: number): number[] {
  const rungs: number[] = [];
  for (let rung = minSteps; rung < steps; rung *= factor) rungs.push(rung);
  return rungs;
}

/**
 * Whether a trial goes on. `values`: more is better, of all trials known at this rung, its own among them. With fewer than `factor` of them
 * only the best goes on; equal ones go on together.
 */
export function goesOn(value: number, values: readonly number[], { factor }: Pick<Halving, "factor">): boolean {
  const best = [...values].sort((a, b) => b - a);
  const kept = Math.max(1, Math.floor(best.length / factor));
  return value >= (best[kept - 1] as number);
}
