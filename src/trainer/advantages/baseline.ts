/** What the advantages of this folder have in common: r_i minus something; advantage.ts divides. */

export interface Baseline {
  /** The rewards of one group [G] less what they are compared with; `batch`: the rewards of all groups of all ranks, [groups][G]. None is NaN. */
  centre(rewards: readonly number[], batch: readonly (readonly number[])[]): number[];
  /** With trainer.advantageScale batch: divide by the standard deviation of the batch's rewards, or of what is left of them. */
  spreadOf: "rewards" | "centred";
}

export function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** All the same, but for those that no function applied to (NaN): such rewards teach nothing, whatever the rounding of their mean. */
export function isUniform(rewards: readonly number[]): boolean {
  const scored = rewards.filter((reward) => !Number.isNaN(reward));
  return scored.every((reward) => reward === scored[0]);
}
