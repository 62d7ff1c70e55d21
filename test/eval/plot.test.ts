import { expect, test } from "vitest";
import { type MetricsLine, plotSvg, pointsOf, runPlot, smooth, ticks } from "../../src/eval/plot.ts";

test("ticks are round and cover the range", () => {
  expect(ticks(0, 1)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
  expect(ticks(-0.13, 0.27)).toEqual([-0.1, 0, 0.1, 0.2]);
  expect(ticks(0, 347, 8)).toEqual([0, 50, 100, 150, 200, 250, 300]);
});

test("smoothing averages over the neighbours that exist", () => {
  const points = [0, 3, 6, 9].map((y, x) => ({ x, y }));
  expect(smooth(points, 1).map((point) => point.y)).toEqual([1.5, 3, 6, 7.5]);
  expect(smooth(points, 0)).toEqual(points);
});

test("points leave out lines without the metric", () => {
  const lines = [{ step: 0, a: 1 }, { step: 1 }, { step: 2, a: 3 }] as MetricsLine[];
  expect(pointsOf(lines, "a")).toEqual([
    { x: 0, y: 1 },
    { x: 2, y: 3 },
  ]);
});

test("a run's plot is well-formed, names its curves and keeps every point inside its panel", () => {
  const lines = Array.from({ length: 60 }, (_, step) => ({
    step,
    "reward/mean": step / 60,
    ...(step % 20 === 0 ? { "eval/L1/accuracy": 0.3, "eval/L<2>/accuracy": 0.2 } : {}),
  })) as MetricsLine[];
  const svg = runPlot({ grpo: lines }, "Tiny run");
  expect(svg).toContain(">Tiny run</text>");
  expect(svg).toContain("<title>Tiny run</title>");
  expect(svg).toContain(">L1</text>");
  expect(svg).toContain(">L&lt;2&gt;</text>");
  expect(svg).not.toMatch(/NaN|undefined|Infinity/);
  // Two rewards (raw, smoothed) and two accuracies, each from its first point on, plus an axis line per panel.
  expect(svg.match(/<path d="M/g)).toHaveLength(2 + 2 + 2);
  expect(svg.match(/<circle/g)).toHaveLength(6);
  const height = Number(/viewBox="0 0 900 (\d+)"/.exec(svg)?.[1]);
  for (const [, x, y] of svg.matchAll(/[ML]([\d.-]+) ([\d.-]+)/g)) {
    expect(Number(x)).toBeGreaterThanOrEqual(64);
    expect(Number(x)).toBeLessThanOrEqual(900 - 176);
    expect(Number(y)).toBeGreaterThan(0);
    expect(Number(y)).toBeLessThan(height);
  }
  const opened = [...svg.matchAll(/<([a-z]+)(?: [^>]*[^/])?>/g)].map(([, tag]) => tag).sort();
  const closed = [...svg.matchAll(/<\/([a-z]+)>/g)].map(([, tag]) => tag).sort();
  expect(opened).toEqual(closed);
});

test("on a log scale equal factors are equally far apart, and each x is marked", () => {
  const points = [75, 150, 300, 2400].map((x) => ({ x, y: x }));
  const svg = plotSvg([{ title: "a", yLabel: "a", series: [{ name: "s", points }] }], { title: "log", xLog: true });
  const xs = [...svg.matchAll(/<circle cx="([\d.]+)"/g)].map(([, x]) => Number(x));
  const [first, second, third, last] = xs as [number, number, number, number];
  expect(third - second).toBeCloseTo(second - first, 1);
  expect(last - third).toBeCloseTo(3 * (second - first), 1);
  for (const { x } of points) expect(svg).toContain(`text-anchor="middle">${x}</text>`);
});

test("of several runs, a level has one colour and all runs but the last are dashed", () => {
  const lines = (levels: string[]) =>
    [0, 10].map((step) => ({ step, ...Object.fromEntries(levels.map((level) => [`eval/${level}/accuracy`, 0.5])) }));
  const runs = { SFT: lines(["L1", "L2"]), GRPO: lines(["L2"]) } as Record<string, MetricsLine[]>;
  const curves = [...runPlot(runs, "two").matchAll(/<path d="M[^"]*" fill="none" stroke="(#\w+)" [^>]*>/g)];
  const drawn = curves.filter(([path]) => path.includes("linejoin"));
  expect(drawn).toHaveLength(3);
  const [sftL1, sftL2, grpoL2] = drawn.map(([, color]) => color);
  expect(sftL1).not.toBe(sftL2);
  expect(grpoL2).toBe(sftL2);
  expect(drawn.map(([path]) => path.includes("stroke-dasharray"))).toEqual([true, true, false]);
});

test("a run without any metrics still gives a picture", () => {
  expect(runPlot({ empty: [] }, "nothing")).toContain("</svg>");
});
