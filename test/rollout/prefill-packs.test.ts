import { expect, test } from "vitest";
import { packPrompts } from "../../src/rollout/prefill-packs.ts";

test("prompts are packed in order up to the budget", () => {
  expect(packPrompts([3, 3, 3, 20, 1], 7)).toEqual([[0, 1], [2], [3], [4]]);
  expect(packPrompts([], 7)).toEqual([]);
});
