/** Small real objects for the trainer's tests. */

import type { Completion, RolloutGroup, Sample } from "../../src/types.ts";

export function fakeSample(id: string, more: Partial<Sample> = {}): Sample {
  return {
    id,
    messages: [{ role: "user", content: [{ type: "text", text: `question ${id}` }] }],
    solution: "<answer>A.</answer>",
    fields: {},
    source: { file: "test.jsonl", line: 1 },
    ...more,
  };
}

export function fakeCompletion(length = 3, more: Partial<Completion> = {}): Completion {
  return {
    ids: Int32Array.from({ length }, (_, i) => i + 5),
    text: "text",
    sampledLogprobs: new Float32Array(length).fill(-1),
    logprobs: new Float32Array(length).fill(-1),
    entropies: new Float32Array(length).fill(1),
    finish: "stop",
    ...more,
  };
}

/** A group with these rewards, each by one function called accuracy. */
export function fakeGroup(rewards: number[], id = "q1", lengths: number[] = rewards.map(() => 3)): RolloutGroup {
  return {
    prompt: {
      sample: fakeSample(id),
      inputIds: Int32Array.of(1, 2, 3, 4),
      positions: Int32Array.from([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]),
      nextPosition: 4,
      images: [],
      videos: [],
    },
    completions: lengths.map((length) => fakeCompletion(length)),
    rewards,
    rewardBreakdown: { accuracy: rewards },
    advantages: [],
  };
}
