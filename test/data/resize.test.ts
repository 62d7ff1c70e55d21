import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { resizeBicubic, smartResize, targetSize } from "../../src/data/resize.ts";
import { bytesOf, fixture, golden, picture } from "./helpers.ts";

for (const { size, to, torchvision, pil } of golden.resize) {
  for (const [flavour, expected] of [
    ["torchvision", torchvision],
    ["pil", pil],
  ] as const) {
    test(`${size.join("x")} to ${to.join("x")} is what ${flavour} makes of it, level for level`, () => {
      const out = resizeBicubic(picture(size[0], size[1]), size, to, flavour);
      expect(Buffer.compare(out, bytesOf(expected))).toBe(0);
    });
  }
}

// Larger, odd, up, down, up and down at once, 50:1: kept as hashes.
for (const { size, to, ...expected } of fixture("resize.json").cases) {
  test.each([
    "torchvision",
    "pil",
  ] as const)(`${size.join("x")} to ${to.join("x")} is what %s makes of it`, (flavour) => {
    const out = resizeBicubic(picture(size[0], size[1]), size, to, flavour);
    const rows = Array.from({ length: to[0] }, (_, y) =>
      out.subarray(y * to[1] * 3, (y + 1) * to[1] * 3).reduce((sum, level) => sum + level, 0),
    );
    const every = Math.max(1, Math.floor(to[0] / 28));
    expect(rows.filter((_, y) => y % every === 0)).toEqual(expected[flavour].rows);
    expect(createHash("sha256").update(out).digest("hex")).toBe(expected[flavour].sha256);
  });
}

test("both flavours clamp where the cubic overshoots", () => {
  const stripes = Uint8Array.from({ length: 40 * 40 * 3 }, (_, i) => (Math.floor(i / 3 / 10) % 2 ? 255 : 0));
  const out = resizeBicubic(stripes, [40, 40], [56, 56], "torchvision");
  expect(Math.min(...out)).toBe(0);
  expect(Math.max(...out)).toBe(255);
});

test("a flat picture stays flat at any size, an unchanged size is not copied", () => {
  const flat = new Uint8Array(50 * 70 * 3).fill(137);
  for (const to of [
    [28, 28],
    [84, 112],
    [50, 28],
    [28, 70],
  ] as const) {
    expect(new Set(resizeBicubic(flat, [50, 70], to, "torchvision"))).toEqual(new Set([137]));
  }
  expect(resizeBicubic(flat, [50, 70], [50, 70], "pil")).toBe(flat);
});

test("smartResize agrees with transformers", () => {
  for (const { size, limits, out } of golden.smartResize) {
    const rule = { factor: 28, minPixels: limits[0], maxPixels: limits[1] };
    expect(smartResize(size[0], size[1], rule), `${size} ${limits}`).toEqual(out);
  }
});

test("a side 200 times the other is refused by name", () => {
  const rule = { factor: 28, minPixels: 3136, maxPixels: 1e6 };
  expect(() => smartResize(10, 2001, rule, "strip.png")).toThrow(/strip\.png.*2001x10/);
});

test("the seed's forced 256 x 256 becomes 252 x 252 whatever the pixel limits", () => {
  const rule = { factor: 28, minPixels: 500_000, maxPixels: 600_000, resizedHeight: 256, resizedWidth: 256 };
  expect(targetSize(1080, 1920, rule)).toEqual([252, 252]);
  expect(targetSize(1080, 1920, { ...rule, resizedWidth: undefined })).not.toEqual([252, 252]);
});
