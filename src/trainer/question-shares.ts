/**
 * Which questions of a step are whose: balanced by tokens, as many questions on each rank (give or take one) as if they were dealt out one by one. What a
 * run computes does not depend on it but for rounding; how long the ranks wait for the one with most to do does.
 *
 * Sizes are known before anything is decoded: each rank measures those questions that dealing out would give it, and all tell each other.
 */

import type { PromptLoader } from "../data/loader.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import type { Ranks } from "../distributed/ranks.ts";
import type { Sample } from "../types.ts";

/** A sample and its place in the list of what a step asks. */
export interface PlacedSample {
  place: number;
  sample: Sample;
}

/**
 * The rank of each question: the longest first, each to the rank with the fewest tokens so far among those with room. Where that makes the rank with
 * most to do no shorter, as among equal questions, they are dealt out one by one. No rank gets more than its even part of them, rounded up, which is
 * what the memory plan counts on.
 * @param sizes tokens of each question
 */
export function balancedOwners(sizes: readonly number[], world: number): number[] {
  const dealt = sizes.map((_, place) => place % world);
  const filled = longestFirst(sizes, world);
  const longest = (owners: readonly number[]) => Math.max(...tokensByOwner(sizes, owners, world));
  return longest(filled) < longest(dealt) ? filled : dealt;
}

function longestFirst(sizes: readonly number[], world: number): number[] {
  const most = Math.ceil(sizes.length / world);
  const ranks = Array.from({ length: world }, () => ({ tokens: 0, count: 0 }));
  const owners: number[] = Array(sizes.length).fill(0);
  const bySize = [...sizes.keys()].sort((a, b) => (sizes[b] as number) - (sizes[a] as number) || a - b);
  for (const place of bySize) {
    let owner = -1;
    for (const [rank, { tokens, count }] of ranks.entries()) {
      if (count === most) continue;
      const least = ranks[owner];
      if (least === undefined || tokens < least.tokens) owner = rank;
    }
    const chosen = ranks[owner] as (typeof ranks)[0];
    chosen.tokens += sizes[place] as number;
    chosen.count++;
    owners[place] = owner;
  }
  return owners;
}

function tokensByOwner(sizes: readonly number[], owners: readonly number[], world: number): number[] {
  const tokens: number[] = Array(world).fill(0);
  for (const [place, owner] of owners.entries()) tokens[owner] = (tokens[owner] as number) + (sizes[place] as number);
  return tokens;
}

/** The most tokens on a rank over their mean: 1 where all have the same. */
export function imbalance(tokensByRank: readonly number[]): number {
  const total = tokensByRank.reduce((sum, tokens) => sum + tokens, 0);
  return total === 0 ? 1 : (Math.max(...tokensByRank) * tokensByRank.length) / total;
}

/** How many tokens of a question a rank computes before anything is sampled: those of its prompt and, in SFT, of the response to it. */
export function measureQuestions(
  stage: "grpo" | "sft",
  { loader, processor }: { loader: Pick<PromptLoader, "length">; processor: { tokenizer: Pick<Tokenizer, "encode"> } },
): (sample: Sample) => Promise<number> {
  return async (sample) => {
    const prompt = await loader.length(sample);
    if (prompt === 0 || stage === "grpo") return prompt;
    return prompt + processor.tokenizer.encode(sample.response ?? "").length;
  };
}

export interface QuestionSharesOptions {
  ranks: Pick<Ranks, "rank" | "world" | "gather">;
  /** Samples of a step's list, a function of the run. */
  samplesOf: (step: number) => readonly Sample[];
  steps: number; // of the run
  /** Tokens of a question; 0 for one that cannot be used. Must not reject. */
  measure: (sample: Sample) => Promise<number>;
}

export class QuestionShares {
  readonly #options: QuestionSharesOptions;
  readonly #known = new Map<number, PlacedSample[]>(); // by step
  readonly #measured = new Map<number, Promise<number[]>>(); // by step, of the questions that this rank measures

  constructor(options: QuestionSharesOptions) {
    this.#options = options;
  }

  /**
   * This rank's questions of steps `first` to `last`; those of the step behind them are measured meanwhile. All ranks call it at the same point, with
   * the same steps.
   */
  async ofSteps(first: number, last: number): Promise<PlacedSample[][]> {
    const { samplesOf, steps } = this.#options;
    const asked = Array.from({ length: last - first + 1 }, (_, i) => first + i);
    const unknown = asked.filter((step) => !this.#known.has(step));
    const sizes = await Promise.all(unknown.map((step) => this.#sizes(step)));
    const shares = this.#divide(
      unknown.map((step) => samplesOf(step)),
      sizes,
    );
    for (const [i, step] of unknown.entries()) this.#known.set(step, shares[i] as PlacedSample[]);
    for (const step of [...this.#known.keys(), ...this.#measured.keys()]) {
      if (step < first) this.#known.delete(step);
      if (step <= last) this.#measured.delete(step);
    }
    if (last + 1 < steps) this.#sizes(last + 1);
    return asked.map((step) => this.#known.get(step) as PlacedSample[]);
  }

  /** This rank's part of another list of questions, which all ranks have alike and ask for at the same point. */
  async of(samples: readonly Sample[]): Promise<PlacedSample[]> {
    const [share = []] = this.#divide([samples], [await this.#measure(samples)]);
    return share;
  }

  #sizes(step: number): Promise<number[]> {
    const present = this.#measured.get(step) ?? this.#measure(this.#options.samplesOf(step));
    this.#measured.set(step, present);
    return present;
  }

  /** Sizes of every world-th question; of a run alone nobody asks. */
  async #measure(samples: readonly Sample[]): Promise<number[]> {
    const { ranks, measure } = this.#options;
    if (ranks.world === 1) return [];
    return Promise.all(samples.filter((_, place) => place % ranks.world === ranks.rank).map(measure));
  }

  /** @param measured for each list what #measure has said of it */
  #divide(lists: readonly (readonly Sample[])[], measured: readonly (readonly number[])[]): PlacedSample[][] {
    const { rank, world, gather } = this.#options.ranks;
    const placed = lists.map((samples) => samples.map((sample, place) => ({ place, sample })));
    if (world === 1 || lists.length === 0) return placed;
    const all = gather.call(this.#options.ranks, measured) as (readonly (readonly number[])[])[];
    return placed.map((questions, i) => {
      const sizes = questions.map(({ place }) => all[place % world]?.[i]?.[Math.floor(place / world)] as number);
      const owners = balancedOwners(sizes, world);
      return questions.filter(({ place }) => owners[place] === rank);
    });
  }
}
