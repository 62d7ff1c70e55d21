import { expect, test } from "vitest";
import * as raster from "../../../src/data/rendered/raster.ts";

/** Pixels covered by a white shape on black: the sum of coverages. */
function area(outline: raster.Outline, camera?: raster.Camera): number {
  const canvas = new raster.Canvas(120, 100, camera);
  canvas.draw(outline, [255, 255, 255]);
  let sum = 0;
  for (let at = 0; at < canvas.pixels.length; at += 3) sum += canvas.pixels[at]! / 255;
  return sum;
}

const close = (got: number, expected: number) => expect(Math.abs(got / expected - 1)).toBeLessThan(0.03);

test("shapes cover the area geometry says", () => {
  close(area(raster.circle(50.3, 40.7, 20)), Math.PI * 400);
  close(area(raster.ring(50, 40, 20, 8)), Math.PI * (400 - 144));
  close(area(raster.box(50.2, 40, 15, 10, 0.4)), 600);
  close(area(raster.cross(50, 40, 20, 6)), 2 * 40 * 12 - 144);
  close(area(raster.ellipse(50, 40, 20, 15, 0.3)), Math.PI * 300);
  close(area(raster.capsule(30, 40, 70, 45, 6)), Math.PI * 36 + 12 * Math.hypot(40, 5));
  close(area(raster.triangle(50, 50, 20)), ((3 * Math.sqrt(3)) / 4) * 400);
  close(area(raster.star(50, 50, 30)), 10 * 0.5 * 30 * 13.5 * Math.sin(Math.PI / 5));
});

test("a crescent is a disc without its bite", () => {
  const disc = raster.circle(50, 40, 20);
  const moon = raster.crescent(50, 40, 20);
  expect(moon.distance(35, 40)).toBeLessThan(0);
  expect(moon.distance(60, 40)).toBeGreaterThan(0);
  expect(area(moon)).toBeLessThan(0.6 * area(disc));
  expect(area(moon)).toBeGreaterThan(0.3 * area(disc));
});

test("the camera zooms areas by its square and moves points where it says", () => {
  const camera: raster.Camera = { zoom: 1.5, angle: 0.3, shift: [3, -2] };
  close(area(raster.circle(60, 50, 12), camera), Math.PI * 144 * 2.25);
  const canvas = new raster.Canvas(120, 100, camera);
  canvas.draw(raster.circle(70, 45, 3), [200, 100, 50]);
  const [x, y] = canvas.toPixel(70, 45);
  const at = (Math.floor(y) * 120 + Math.floor(x)) * 3;
  expect([...canvas.pixels.subarray(at, at + 3)]).toEqual([200, 100, 50]);
  canvas.paint((sceneX, sceneY, out) => out.fill(Math.hypot(sceneX - 70, sceneY - 45) < 2 ? 255 : 0));
  expect(canvas.pixels[at]).toBe(255);
  expect(canvas.pixels[0]).toBe(0);
});

test("opacity blends, and nothing is drawn outside the canvas", () => {
  const canvas = new raster.Canvas(10, 10);
  canvas.draw(raster.box(5, 5, 50, 50), [100, 200, 50], 0.5);
  expect(new Set(canvas.pixels)).toEqual(new Set([50, 100, 25]));
  canvas.draw(raster.circle(-20, 5, 5), [255, 255, 255]);
  expect(new Set(canvas.pixels)).toEqual(new Set([50, 100, 25]));
});
