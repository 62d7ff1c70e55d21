/**
 * Ranks that sample their shares of a step's completions side by side, and ranks that take over what waits at others: a model in plain numbers, with the rules
 * of src/rollout/slot-scheduler.ts for who gets a slot and a row. It knows how long each completion will be, and a taker sees at no cost and at once what
 * waits where: what it gains is more than a trainer could, which knows neither.
 */

import { invariant } from "../../src/errors.ts";
import { TURN } from "../../src/rollout/slot-scheduler.ts";

/** What a rank with rows to spare takes: nothing; a question of which nothing has begun; any completion without a row, begun or not. */
export type TakeOver = "none" | "question" | "completion";

export interface Costs {
  stepS: number; // of a decode step, however many of its rows are busy
  prefillS: number; // of a question: vision and prompt
  /** Of a question's patches, to a rank that computes its prompt; of a prompt's keys and values; of those of one sampled token. */
  sendS: { patches: number; prompt: number; token: number };
}

export interface RolloutCase {
  /** [rank][question][completion] tokens, the first one from the prompt's logits. */
  lengths: readonly (readonly (readonly number[])[])[];
  rows: number;
  slots: number;
  costs: Costs;
  takeOver: TakeOver;
  /** Most times that something is taken; the best number of them is for the caller to find. */
  takes: number;
}

export interface RolloutTimes {
  endS: number[]; // by rank, when it has no more to do
  steps: number[]; // by rank
  taken: number; // completions
}

interface Completion {
  question: string; // rank/index
  length: number;
  drawn: number;
  since: number; // admission
  active: boolean;
}

/** Ranks proceed by one admission and one step at a time, always the one that is furthest behind, so that each sees the others as they are then. */
export function simulate({ lengths, ...rules }: RolloutCase): RolloutTimes {
  const ranks = lengths.map((questions, rank) => new SimulatedRank(questions, String(rank), rules));
  const working = new Set(ranks);
  let [taken, takes] = [0, 0];
  while (working.size > 0) {
    const [rank] = [...working].sort((a, b) => a.seconds - b.seconds) as [SimulatedRank];
    if (rules.takeOver !== "none" && takes < rules.takes) {
      const got = rank.takeFrom(ranks, rules.takeOver);
      taken += got;
      takes += Number(got > 0);
    }
    if (rank.isBusy) rank.proceed();
    else working.delete(rank); // what waits elsewhere only gets less
  }
  return { endS: ranks.map(({ seconds }) => seconds), steps: ranks.map(({ steps }) => steps), taken };
}

class SimulatedRank {
  seconds = 0;
  steps = 0;
  private admissions = 0;
  private readonly rules: Omit<RolloutCase, "lengths">;
  private readonly waiting: Completion[];
  private readonly slots: (Completion | null)[];
  private readonly prompts = new Set<string>(); // whose keys and values are here

  constructor(questions: RolloutCase["lengths"][number], name: string, rules: Omit<RolloutCase, "lengths">) {
    this.rules = rules;
    this.slots = Array(rules.slots).fill(null);
    this.waiting = questions.flatMap((group, i) =>
      group.map((length) => ({ question: `${name}/${i}`, length, drawn: 0, since: 0, active: false })),
    );
  }

  get isBusy(): boolean {
    return this.waiting.length > 0 || this.slots.some((one) => one !== null);
  }

  /** Admits what there are slots for and makes a step. */
  proceed(): void {
    this.admit();
    const active = this.arrange();
    if (active.length > 0) {
      for (const one of active) one.drawn++;
      this.steps++;
      this.seconds += this.rules.costs.stepS;
    }
    this.retire();
  }

  /** Takes from the rank with most to do, as much as there are rows to spare here; how many completions that were. */
  takeFrom(ranks: readonly SimulatedRank[], what: Exclude<TakeOver, "none">): number {
    const { rows, costs } = this.rules;
    const spare = rows - this.running.length - this.waiting.length;
    if (spare <= 0) return 0;
    const others = ranks.filter((rank) => rank !== this && rank.tokensLeft > this.tokensLeft);
    const [from] = others.sort((a, b) => b.tokensLeft - a.tokensLeft);
    if (from === undefined) return 0;
    const taken = what === "question" ? from.giveQuestion() : from.giveCompletions(spare);
    for (const one of taken) {
      if (!this.prompts.has(one.question) && from.prompts.has(one.question)) {
        this.seconds += costs.sendS.prompt;
        this.prompts.add(one.question);
      }
      this.seconds += one.drawn * costs.sendS.token;
    }
    const asked = new Set(taken.map(({ question }) => question).filter((question) => !this.prompts.has(question)));
    this.seconds += asked.size * costs.sendS.patches;
    this.waiting.push(...taken);
    return taken.length;
  }

  private get running(): Completion[] {
    return this.slots.filter((one) => one !== null);
  }

  private get tokensLeft(): number {
    return [...this.running, ...this.waiting].reduce((sum, { length, drawn }) => sum + length - drawn, 0);
  }

  private giveQuestion(): Completion[] {
    const question = this.waiting.findLast((one) => !this.prompts.has(one.question))?.question;
    return this.give(this.waiting.filter((one) => one.question === question));
  }

  /** Those that have not begun, the last one first; then those that wait for a row with the most to do. Never so many that a row here goes without. */
  private giveCompletions(most: number): Completion[] {
    const paused = this.running.filter(({ active }) => !active);
    paused.sort((a, b) => b.length - b.drawn - (a.length - a.drawn));
    const idle = [...this.waiting.toReversed(), ...paused];
    const mine = this.running.length + this.waiting.length;
    return this.give(idle.slice(0, Math.max(0, Math.min(most, mine - this.rules.rows))));
  }

  private give(given: readonly Completion[]): Completion[] {
    for (const one of given) {
      const place = this.waiting.indexOf(one);
      if (place >= 0) this.waiting.splice(place, 1);
      else this.slots[this.slots.indexOf(one)] = null;
    }
    return [...given];
  }

  private admit(): void {
    const { costs } = this.rules;
    this.admissions++;
    for (const [slot, occupant] of this.slots.entries()) {
      if (occupant !== null) continue;
      const next = this.waiting.shift();
      if (next === undefined) return;
      if (!this.prompts.has(next.question)) this.seconds += costs.prefillS;
      this.prompts.add(next.question);
      next.drawn = Math.max(1, next.drawn);
      next.since = this.admissions;
      next.active = false;
      this.slots[slot] = next;
    }
  }

  private arrange(): Completion[] {
    const running = this.running.filter(({ length, drawn }) => drawn < length);
    const stays = ({ active, drawn }: Completion) => active && drawn % TURN !== 0;
    const others = running.filter((one) => !stays(one));
    others.sort((a, b) => a.drawn - b.drawn || Number(b.active) - Number(a.active) || a.since - b.since);
    const free = this.rules.rows - (running.length - others.length);
    for (const [i, one] of others.entries()) one.active = i < free;
    const active = running.filter((one) => one.active);
    invariant(active.length <= this.rules.rows, "more completions than rows");
    return active;
  }

  private retire(): void {
    for (const [slot, one] of this.slots.entries()) {
      if (one !== null && one.drawn >= one.length) this.slots[slot] = null;
    }
  }
}
