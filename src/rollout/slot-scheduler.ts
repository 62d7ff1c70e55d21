/**
 * Which completion is in which slot, and which of them get a row of the next step: as many as there are rows, more of them waiting or paused than
 * that. Plain numbers, no tensor; what it decides is a function of its arguments and of what it is told, so a rollout repeats exactly.
 *
 * Prompts come longest first: a gap that a prompt leaves in the arena is then long enough for every later one. A prompt is computed as soon as one
 * of its completions gets a slot; its place is given back with its last completion.
 *
 * Rows go to the completions with the fewest tokens, in turns of some tokens. How long a completion will be is not known, and one that is begun late
 * and turns out long would go on alone in the end; begun early, it is long when all others are.
 */

import { invariant } from "../errors.ts";
import { TokenArena } from "./token-arena.ts";

export interface SlotSchedulerOptions {
  promptLengths: readonly number[]; // [Q] tokens
  groupSize: number; // G, completions of each prompt
  rows: number; // completions in a step
  slots: number; // completions at a time
  seats: number; // prompts at a time
  arenaTokens: number; // of all prompts at a time, no less than the longest
  /** Tokens after which a completion has ended whatever it says. */
  maxNewTokens: number;
}

/** A prompt whose keys and values are, or are about to be, in the arena. */
export interface SeatedPrompt {
  question: number; // index of the prompt
  seat: number;
  start: number; // its first token's place in the arena
}

/** Tokens after which a completion gives its row up to one that has fewer. */
export const TURN = 16;

/** A completion in its slot. */
export interface Placement {
  slot: number;
  seat: number; // of its prompt
  question: number;
  completion: number; // 0 .. G - 1
}

export interface Admission {
  prompts: SeatedPrompt[]; // to be computed now
  placements: Placement[]; // get their first token now
}

interface Seat extends SeatedPrompt {
  placed: number; // completions that have or had a slot
  ended: number;
}

interface Occupant extends Placement {
  since: number; // clock
  drawn: number; // tokens that it has been given, were it not to end
  ended: boolean;
  active: boolean; // has a row of the next step
}

export class SlotScheduler {
  private readonly options: SlotSchedulerOptions;
  private readonly arena: TokenArena;
  private readonly waiting: number[]; // questions without a seat, the next one last
  private readonly seats: (Seat | null)[];
  private readonly slots: (Occupant | null)[];
  private arranged: readonly Occupant[] = [];
  private now = 0;

  constructor(options: SlotSchedulerOptions) {
    const { promptLengths, rows, slots, seats, arenaTokens } = options;
    invariant(rows >= 1 && slots >= 1 && seats >= 1, "a scheduler needs a row, a slot and a seat");
    invariant(Math.max(0, ...promptLengths) <= arenaTokens, "the longest prompt does not fit the arena");
    this.options = options;
    this.arena = new TokenArena(arenaTokens);
    this.waiting = [...promptLengths.keys()].sort(
      (a, b) => (promptLengths[a] as number) - (promptLengths[b] as number) || b - a,
    );
    this.seats = Array(seats).fill(null);
    this.slots = Array(slots).fill(null);
  }

  /** Grows with every admission and step; says how old a look at the flags is. */
  get clock(): number {
    return this.now;
  }

  /** Whether every completion has ended and left its slot. */
  get finished(): boolean {
    return this.waiting.length === 0 && this.seats.every((seat) => seat === null);
  }

  /** Gives every free slot a completion while there are any, seats and room for their prompts. */
  admit(): Admission {
    const admission: Admission = { prompts: [], placements: [] };
    for (const [slot, occupant] of this.slots.entries()) {
      if (occupant !== null) continue;
      let seat = this.openSeat();
      if (seat === null) {
        seat = this.seatNext();
        if (seat === null) break;
        admission.prompts.push({ question: seat.question, seat: seat.seat, start: seat.start });
      }
      const placement = { slot, seat: seat.seat, question: seat.question, completion: seat.placed++ };
      const ended = this.options.maxNewTokens === 1;
      this.slots[slot] = { ...placement, since: this.now + 1, drawn: 1, ended, active: false };
      admission.placements.push(placement);
    }
    if (admission.placements.length > 0) this.now++;
    return admission;
  }

  /**
   * Who gets a row of the next step: those who had one, but for turns that are over, then those with the fewest tokens. The same array as before
   * where nothing has changed.
   */
  arrange(): readonly Placement[] {
    const running = this.slots.filter((occupant) => occupant !== null && !occupant.ended) as Occupant[];
    const stays = ({ active, drawn }: Occupant) => active && drawn % TURN !== 0;
    const others = running.filter((occupant) => !stays(occupant));
    others.sort((a, b) => a.drawn - b.drawn || Number(b.active) - Number(a.active) || a.since - b.since);
    const free = this.options.rows - (running.length - others.length);
    for (const [i, occupant] of others.entries()) occupant.active = i < free;
    const next = running.filter(({ active }) => active);
    const same = next.length === this.arranged.length && next.every((occupant, i) => occupant === this.arranged[i]);
    if (!same) this.arranged = next;
    return this.arranged;
  }

  /** A step is on its way: one more token for everyone who has a row. */
  advance(): void {
    this.now++;
    for (const occupant of this.slots) {
      if (occupant?.active && !occupant.ended) occupant.ended = ++occupant.drawn >= this.options.maxNewTokens;
    }
  }

  /** Takes note of the slots' flags (not 0: ended) as they were when the clock stood at `at`; newer occupants are not meant. */
  observe(done: ArrayLike<number>, at: number): void {
    for (const occupant of this.slots) {
      if (occupant !== null && occupant.since <= at && done[occupant.slot] !== 0) occupant.ended = true;
    }
  }

  /** Takes the completions that have ended out of their slots. */
  retire(): Placement[] {
    const retired: Placement[] = [];
    for (const [index, occupant] of this.slots.entries()) {
      if (occupant === null || !occupant.ended) continue;
      const { slot, seat, question, completion } = occupant;
      retired.push({ slot, seat, question, completion });
      this.slots[index] = null;
      this.leave(seat);
    }
    return retired;
  }

  /** The first prompt in a seat with completions that have had no slot yet. */
  private openSeat(): Seat | null {
    return this.seats.find((seat) => seat !== null && seat.placed < this.options.groupSize) ?? null;
  }

  private seatNext(): Seat | null {
    const question = this.waiting.at(-1);
    const index = this.seats.indexOf(null);
    if (question === undefined || index < 0) return null;
    const start = this.arena.take(this.options.promptLengths[question] as number);
    if (start === null) return null;
    this.waiting.pop();
    const seat = { question, seat: index, start, placed: 0, ended: 0 };
    this.seats[index] = seat;
    return seat;
  }

  private leave(index: number): void {
    const seat = this.seats[index];
    invariant(seat !== null && seat !== undefined, `nobody sits in seat ${index}`);
    if (++seat.ended < this.options.groupSize) return;
    this.arena.release(seat.start);
    this.seats[index] = null;
  }
}
