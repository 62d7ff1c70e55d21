/**
 * What goes to a Python function or a reward server, and what comes back, as JSON: docs/rewards.md, src/reward/bridge/serve.py. The
 * arguments are TRL's: chats as messages, a list for every column of the records.
 */

import type { RewardBatch } from "../batch.ts";
import type { RawAnswer } from "../source.ts";

export interface WireRequest {
  prompts: unknown[]; // [N], chat messages
  completions: { role: "assistant"; content: string }[][]; // [N], one message each
  completion_ids: number[][]; // [N]
  columns: Record<string, unknown[]>; // [N] each, null where a record lacks the field
  trainer_state: Record<string, number>;
}

/** Names that a column cannot have in TRL, or that are passed as arguments of their own. */
const NOT_COLUMNS = new Set(["prompt", "completion", "prompts", "completions", "completion_ids", "trainer_state"]);

export function requestOf(batch: RewardBatch): WireRequest {
  const { rows, step } = batch;
  return {
    prompts: rows.map(({ sample }) => sample.messages),
    completions: rows.map(({ completion }) => [{ role: "assistant", content: completion.text }]),
    completion_ids: rows.map(({ completion }) => [...completion.ids]),
    columns: columnsOf(batch),
    trainer_state: {
      global_step: step.step,
      max_steps: step.steps,
      epoch: step.epoch,
      num_train_epochs: step.epochs,
    },
  };
}

/** The records' fields, the solution as accuracy reads it, the id, and why each completion ended. */
function columnsOf({ rows, columns }: RewardBatch): Record<string, unknown[]> {
  const all = {
    finish_reason: rows.map(({ completion }) => completion.finish),
    ...columns,
    solution: rows.map(({ sample }) => sample.solution),
    id: rows.map(({ sample }) => sample.id),
  };
  return Object.fromEntries(Object.entries(all).filter(([name]) => !NOT_COLUMNS.has(name)));
}

/** @throws a plain Error that says what was expected, for a reply that is no object of rewards or of an error */
export function parseReply(text: string): RawAnswer | { ready: true } | { error: string } {
  const reply = JSON.parse(text) as Record<string, unknown> | null;
  if (typeof reply === "object" && reply !== null) {
    if (typeof reply.error === "string") return { error: reply.error };
    if (reply.ready === true) return { ready: true };
    if ("rewards" in reply) {
      const { rewards, metrics, columns } = reply;
      return { values: rewards, metrics: objectOf(metrics), columns: objectOf(columns) };
    }
  }
  throw new Error(`expected {"rewards": [...]}, got ${text.length > 200 ? `${text.slice(0, 200)}...` : text}`);
}

function objectOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
}
