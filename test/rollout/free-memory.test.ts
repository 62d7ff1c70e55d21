import os, { freemem } from "node:os";
import { afterEach, expect, test, vi } from "vitest";
import { availableBytes } from "../../src/rollout/free-memory.ts";
import { shareHostMemory } from "../../src/torch/host-memory.ts";

const GIB = 2 ** 30;
afterEach(() => {
  vi.restoreAllMocks();
  shareHostMemory(1);
});

test("ranks of one host plan with a share each", () => {
  vi.spyOn(process, "constrainedMemory").mockReturnValue(0);
  vi.spyOn(os, "freemem").mockReturnValue(24 * GIB);
  expect(availableBytes("cpu")).toBe(12 * GIB);
  shareHostMemory(4);
  expect(availableBytes("cpu")).toBe(3 * GIB);
});

test("a container's limit counts, not what the machine has beside it", () => {
  vi.spyOn(process.memoryUsage, "rss").mockReturnValue(3 * GIB);
  const limit = vi.spyOn(process, "constrainedMemory");
  limit.mockReturnValue(3 * GIB + 4096);
  expect(availableBytes("cpu")).toBe(2048);
  limit.mockReturnValue(2 * GIB); // above it already
  expect(availableBytes("cpu")).toBe(0);
  for (const none of [0, 2 ** 64]) {
    limit.mockReturnValue(none);
    expect(availableBytes("cpu")).toBeGreaterThan(2048);
    expect(availableBytes("cpu")).toBeLessThan(2 * freemem());
  }
});
