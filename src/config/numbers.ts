/** Kinds of numbers that several parts of the schema use. */
import { z } from "zod";

export const positive = () => z.number().int().positive();
export const fraction = () => z.number().min(0).max(1);
/** Share of the probability that tokens are sampled from. */
export const topShare = () => z.number().gt(0, "0 leaves no token to sample; 1 keeps all").max(1);
/** Divisor of logits. */
export const temperature = (greedy: string) =>
  z.number().gt(0, `expected a number above 0; for the likeliest token at each place set ${greedy}`).default(1);
