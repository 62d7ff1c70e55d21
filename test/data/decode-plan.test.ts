import { expect, test } from "vitest";
import { planDecoding } from "../../src/data/decode-plan.ts";
import { frameIndices } from "../../src/data/frame-index.ts";
import type { PacketTable } from "../../src/data/packets.ts";

/** A video of `total` frames with a key frame every `distance`. */
function table(total: number, distance: number, [width, height]: readonly [number, number]): PacketTable {
  const pts = Array.from({ length: total }, (_, i) => i);
  const isKey = pts.map((i) => i % distance === 0);
  return { pts, isKey, timeBase: { num: 1, den: 30 }, isMp4: true, averageFps: 30, width, height, hasTimes: true };
}

const hd = [1920, 1080] as const;

test.each([
  // three minutes in 1080p: seeking wins as soon as there is more than one key frame to speak of
  { total: 5400, distance: 12, size: hd, method: "seek" },
  { total: 5400, distance: 48, size: hd, method: "seek" },
  { total: 5400, distance: 250, size: hd, method: "seek" },
  { total: 5400, distance: 99_999, size: hd, method: "pass" },
  // ten to thirty seconds: sixteen processes cost more than the frames between
  { total: 240, distance: 12, size: hd, method: "pass" },
  { total: 300, distance: 48, size: hd, method: "pass" },
  { total: 300, distance: 12, size: [320, 240], method: "pass" },
  { total: 900, distance: 30, size: [320, 240], method: "pass" },
  { total: 7200, distance: 30, size: [320, 240], method: "seek" },
  { total: 108_000, distance: 250, size: [320, 240], method: "seek" },
] as const)("$total frames of $size, a key frame each $distance: $method", ({ total, distance, size, method }) => {
  expect(planDecoding(table(total, distance, size), frameIndices(total, 16)).method).toBe(method);
});

test("frames behind one key frame share a process; frames in front of the first key frame are reached from the start", () => {
  const { groups, seek, pass } = planDecoding(table(100, 40, hd), [0, 20, 40, 60, 99]);
  expect(groups).toEqual([
    { key: 0, indices: [0, 20] },
    { key: 40, indices: [40, 60] },
    { key: 80, indices: [99] },
  ]);
  expect([seek.frames, pass.frames]).toEqual([21 + 21 + 20, 100]);
  const offKey = { ...table(10, 4, hd), isKey: [0, 0, 0, 1, 0, 0, 0, 0, 0, 0].map(Boolean) };
  expect(planDecoding(offKey, [1, 5]).groups).toEqual([
    { key: 0, indices: [1] },
    { key: 3, indices: [5] },
  ]);
});

test("a container that has to be searched first makes seeking dearer", () => {
  const mp4 = table(400, 12, hd);
  const indices = frameIndices(400, 16);
  expect(planDecoding(mp4, indices).method).toBe("seek");
  expect(planDecoding({ ...mp4, isMp4: false }, indices).method).toBe("pass");
});
