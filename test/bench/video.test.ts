import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { run } from "../../bench/video.ts";
import { temporaryFolder } from "../data/helpers.ts";

const folder = temporaryFolder();
afterAll(folder.remove);

test("the video benchmark measures both ways and writes what it found", async () => {
  const out = join(folder.path, "results", "video.json");
  const lines: string[] = [];
  const result = await run({
    folder: folder.path,
    size: [192, 108],
    seconds: 2,
    distances: [12],
    repeats: 1,
    workers: 1,
    python: "/nowhere/python3",
    out,
    log: (line) => lines.push(line),
  });
  expect(result.reference).toBeNull();
  expect(result.clips.map((clip) => [clip.width, clip.keyFrameDistance, clip.frames])).toEqual([
    [192, 12, 4],
    [640, 48, 4],
    [320, 30, 4],
  ]);
  for (const { chosen, other, plan, step } of result.clips) {
    expect(new Set([chosen.method, other.method])).toEqual(new Set(["pass", "seek"]));
    expect(plan[chosen.method as "pass"].seconds).toBeLessThanOrEqual(plan[other.method as "seek"].seconds);
    expect(chosen.wallSeconds.median).toBeGreaterThan(0);
    expect(step.shareOfStep).toBeCloseTo(step.wallSeconds / 4, 9);
  }
  expect(JSON.parse(readFileSync(out, "utf8"))).toEqual(result);
  expect(lines.join("\n")).toContain("(chosen)");
});
