import type { RewardBatch } from "./batch.ts";

/** What a reward function has said of a batch of N completions, not judged yet (judge.ts). */
export interface RawAnswer {
  values: unknown; // ought to be (number | null)[N]
  /** [N], where completions have calls of their own: what the call threw. */
  errors?: (string | null)[];
  /** Logged by the function: numbers of the call, and columns of [N] values. */
  metrics?: Record<string, unknown>;
  columns?: Record<string, unknown>;
}

/** Where a reward function of the user's own runs. */
export interface RewardSource {
  /** A module, a Python function or an address, for messages. */
  readonly place: string;
  /** Loads it, if it is not loaded. Throws RewardError where that fails. */
  start(): Promise<void>;
  /** One call for the whole batch; calls at the same time wait for each other. Throws RewardError where the call as a whole fails. */
  score(batch: RewardBatch): Promise<RawAnswer>;
  /** Ends what runs, for good; a call that is under way fails. */
  close(): Promise<void>;
}
