import { expect, test } from "vitest";
import { forwardFlops } from "../../bench/lib/flops.ts";
import { seedPrompts } from "../../bench/lib/shapes.ts";
import { packGroups } from "../../src/model/packed.ts";
import { releasedConfig } from "../../src/model/qwen2vl/released.ts";

const pack = (group: number, tokens: number) => {
  const completions = Array.from({ length: group }, () => new Int32Array(tokens));
  return packGroups([{ prompt: seedPrompts(1)[0]!, completions }]);
};

test("operations of a 7B pass are those counted by hand", () => {
  const { text, vision, head } = forwardFlops(releasedConfig("7B"), pack(8, 256));
  const weights = 28 * (3584 * 4608 + 3584 * 3584 + 3 * 3584 * 18944); // of the layers' products
  const pairs = 931 ** 2 / 2 + 8 * (256 * 931 + 256 ** 2 / 2);
  expect(text).toBeCloseTo(2 * 2979 * weights + 28 * 4 * pairs * 3584, -6);
  expect(head).toBe(2 * 2048 * 3584 * 152064);
  const patches = 9 * 324;
  const blocks = 32 * (2 * patches * 12 * 1280 ** 2 + 4 * 9 * 324 ** 2 * 1280);
  expect(vision).toBe(2 * patches * 1176 * 1280 + blocks + 2 * (patches / 4) * 5120 * (5120 + 3584));
});

test("completions share their prompt: twice as many cost less than twice as much", () => {
  const config = releasedConfig("2B");
  const [one, two] = [8, 16].map((group) => forwardFlops(config, pack(group, 128)));
  expect(two?.vision).toBe(one?.vision);
  expect(two?.head).toBe(2 * (one?.head ?? 0));
  expect((two?.text ?? 0) / (one?.text ?? 1)).toBeLessThan(1.55);
});
