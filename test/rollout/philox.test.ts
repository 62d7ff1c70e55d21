import { expect, test } from "vitest";
import { philox4x32, philoxUniform, sampleKey } from "../../src/rollout/philox.ts";

// Random123's kat_vectors, philox4x32 with 10 rounds
test.each([
  [
    [0, 0, 0, 0],
    [0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
] as const)("philox4x32-10 of %j with key %j is the published answer", (counter, key, expected) => {
  expect(philox4x32(counter, key)).toEqual(expected);
});

test("uniform numbers are 24-bit fractions of the first word", () => {
  expect(philoxUniform([0, 0], 0)).toBe((0x6627e8d5 >>> 8) / 2 ** 24);
});

test("uniform over positions of one completion, and over completions at one position", () => {
  const n = 50_000;
  const key = sampleKey(42, 3, "q1", 0);
  for (const draw of [
    (i: number) => philoxUniform(key, i),
    (i: number) => philoxUniform(sampleKey(42, 3, "q1", i), 0),
  ]) {
    const counts = new Array<number>(100).fill(0);
    for (let i = 0; i < n; i++) counts[Math.floor(draw(i) * 100)]!++;
    const statistic = counts.reduce((sum, count) => sum + (count - n / 100) ** 2 / (n / 100), 0);
    expect(statistic).toBeLessThan(148.2); // 99 degrees of freedom, p = 0.001
  }
});

test("every part of the key counts, and equal keys give equal words", () => {
  const keys = [
    sampleKey(1, 2, "a", 3),
    sampleKey(2, 2, "a", 3),
    sampleKey(1, 3, "a", 3),
    sampleKey(1, 2, "b", 3),
    sampleKey(1, 2, "a", 4),
  ];
  expect(new Set(keys.map(String)).size).toBe(keys.length);
  expect(sampleKey(1, 2, "a", 3)).toEqual(keys[0]);
});
