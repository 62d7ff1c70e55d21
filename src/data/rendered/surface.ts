/** Table tops: procedural textures with low-frequency noise, drawn from random keys. */

import { type RandomKey, uniform } from "../../random.ts";
import type { Canvas, Rgb } from "./raster.ts";

export type SurfaceKind = "wood" | "cloth" | "stone" | "stripes" | "checks" | "tiles" | "grid" | "steel";

export interface Surface {
  kind: SurfaceKind;
  base: Rgb;
  /** The second colour of the pattern: grain, stripe, check, joint. */
  accent: Rgb;
}

/** Covers the whole canvas. The noise and the pattern's offset depend on the keys only. */
export function paintSurface(canvas: Canvas, surface: Surface, ...keys: RandomKey[]): void {
  const noise = valueNoise(9, 7, 22, ...keys, "noise");
  const offset = 40 * uniform(...keys, "offset");
  const amount = PATTERNS[surface.kind];
  const { base, accent } = surface;
  canvas.paint((x, y, out) => {
    const shade = noise(x, y);
    const mix = amount(x + 200 + offset, y + 200 + offset, shade);
    for (let c = 0; c < 3; c++) out[c] = base[c]! + (accent[c]! - base[c]!) * mix + 14 * shade;
  });
}

/** How much of the accent colour shows at a point, 0..1; `shade` is the noise there, -1..1. */
const PATTERNS: Record<SurfaceKind, (x: number, y: number, shade: number) => number> = {
  wood: (_x, y, shade) => 0.5 * line(y, 38, 1.2) + 0.16 * (1 + Math.sin(0.75 * y + 5 * shade)),
  cloth: (x, y) => 0.2 * (1 + Math.sin(1.6 * x) * Math.sin(1.6 * y)),
  stone: (_x, _y, shade) => 0.5 + 0.5 * Math.sin(9 * shade),
  stripes: (x) => (x % 22 < 9 ? 1 : 0),
  checks: (x, y) => ((x % 32 < 16 ? 1 : 0) + (y % 32 < 16 ? 1 : 0)) / 2,
  tiles: (x, y) => Math.max(line(x, 30, 1.5), line(y, 30, 1.5)),
  grid: (x, y) => 0.7 * Math.max(line(x, 12, 0.8), line(y, 12, 0.8)),
  steel: (_x, y, shade) => 0.25 * (1 + Math.sin(2.4 * y + 3 * shade)),
};

/** 1 on lines of a half width every `period`, antialiased. */
function line(x: number, period: number, half: number): number {
  const distance = Math.abs((x % period) - period / 2);
  return Math.min(1, Math.max(0, half + 0.5 - distance));
}

/** Smooth noise in [-1, 1] over the scene, from a lattice of columns x rows random values `cell` units apart. */
function valueNoise(columns: number, rows: number, cell: number, ...keys: RandomKey[]) {
  const lattice = Float64Array.from({ length: columns * rows }, (_, i) => 2 * uniform(...keys, i) - 1);
  return (x: number, y: number): number => {
    const u = Math.min(columns - 1.001, Math.max(0, x / cell + 0.5));
    const v = Math.min(rows - 1.001, Math.max(0, y / cell + 0.5));
    const i = Math.floor(u);
    const j = Math.floor(v);
    const fx = smooth(u - i);
    const fy = smooth(v - j);
    const at = j * columns + i;
    const above = lattice[at]! + (lattice[at + 1]! - lattice[at]!) * fx;
    const below = lattice[at + columns]! + (lattice[at + columns + 1]! - lattice[at + columns]!) * fx;
    return above + (below - above) * fy;
  };
}

/** Eases 0..1 to 0..1 with zero slope at both ends. */
export function smooth(t: number): number {
  return t * t * (3 - 2 * t);
}
