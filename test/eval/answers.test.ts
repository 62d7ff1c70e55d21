import { expect, test } from "vitest";
import { ConfigError } from "../../src/errors.ts";
import { parseShard, shardOf } from "../../src/eval/answers.ts";

test.each(["", "1", "0/3", "4/3", "1/0", "-1/3", "1.5/3", "1/3/5", "a/b", "1/99999"])("%j is no share", (text) => {
  expect(() => parseShard(text)).toThrow(ConfigError);
});

test.each([1, 2, 3, 7, 30])("%i shares hold every question once, none much more than another", (of) => {
  const questions = Array.from({ length: 23 }, (_, i) => i);
  const shares = Array.from({ length: of }, (_, i) => shardOf(questions, parseShard(`${i + 1}/${of}`)));
  expect(shares.flat().sort((a, b) => a - b)).toEqual(questions);
  const sizes = shares.map((share) => share.length);
  expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
});

test("a share is the same questions on every machine: every N-th from the k-th on", () => {
  expect(shardOf([10, 11, 12, 13, 14, 15, 16], { k: 1, of: 3 })).toEqual([10, 13, 16]);
  expect(shardOf([10, 11, 12, 13, 14, 15, 16], { k: 3, of: 3 })).toEqual([12, 15]);
});

test("no share is all", () => {
  expect(shardOf([3, 1, 2], undefined)).toEqual([3, 1, 2]);
});
