import type { Completion, RolloutGroup } from "../../src/types.ts";

/** A question with the given completions, as the sampler would hand it over. */
export function groupOf(
  texts: string[],
  options: { id?: string; solution?: string; fields?: Record<string, unknown> } = {},
): RolloutGroup {
  const { id = "q", solution = "<answer>A.</answer>", fields = {} } = options;
  const sample = {
    id,
    messages: [{ role: "user" as const, content: `question ${id}` }],
    solution,
    fields,
    source: { file: "test.jsonl", line: 1 },
  };
  const completions = texts.map((text): Completion => {
    const ids = Int32Array.from(text, (character) => character.codePointAt(0) as number);
    const logprobs = new Float32Array(ids.length);
    return { ids, text, sampledLogprobs: logprobs, logprobs, entropies: logprobs, finish: "stop" };
  });
  const prompt = {
    sample,
    inputIds: Int32Array.of(1),
    positions: Int32Array.of(0, 0, 0),
    nextPosition: 1,
    images: [],
    videos: [],
  };
  return { prompt, completions, rewards: [], rewardBreakdown: {}, advantages: [] };
}
