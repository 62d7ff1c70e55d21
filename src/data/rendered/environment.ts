/**
 * Where an assembly happens: table, board layout, palette, hand, camera and frame rate. `workshop` is the environment of training and L1;
 * `studio` (L2) keeps the board but changes surroundings, palette, camera, speed and frame rate; `elsewhere` (L3) has other boards,
 * hands and tables, one look for each domain.
 */

import { pick, type RandomKey, uniform } from "../../random.ts";
import type { Camera, Rgb } from "./raster.ts";
import { COLOURS, type Colour, type Domain } from "./recipe.ts";
import type { Surface } from "./surface.ts";

export type EnvironmentName = "workshop" | "studio" | "elsewhere";

export const SCENE_WIDTH = 160;
export const SCENE_HEIGHT = 120;

export interface Environment {
  name: EnvironmentName;
  surface: Surface;
  /** Slot centres in scene units, in the order in which they are filled. */
  slots: readonly (readonly [x: number, y: number])[];
  /** `plate`: one rounded rectangle under all slots; `path`: a band along them. */
  board: { shape: "plate" | "path"; colour: Rgb; outline: Rgb };
  palette: Record<Colour, Rgb>;
  hand: { skin: Rgb; sleeve: Rgb; enters: "below" | "right" | "left" };
  camera: Camera;
  fps: number;
  /** Seconds from the hand's entry to its exit, for one piece. */
  actionSeconds: number;
  /** Seconds of the clip. */
  seconds: number;
}

const PALETTE: Record<Colour, Rgb> = {
  red: [216, 34, 40],
  orange: [250, 138, 24],
  yellow: [252, 226, 52],
  green: [36, 170, 70],
  blue: [40, 92, 226],
  purple: [128, 46, 180],
  pink: [252, 146, 196],
  white: [248, 248, 246],
};

const LINE = [26, 53, 80, 107, 134].map((x) => [x, 52] as const);

/** Training and L1: a light wooden table, a dark board with its slots in a row, a hand from below. */
export function workshop(...keys: RandomKey[]): Environment {
  const light = between(0.92, 1.08, ...keys, "light");
  const sleeve = pick<Rgb>([[70, 90, 120], [110, 70, 70], [80, 100, 80]], ...keys, "sleeve"); // biome-ignore format: a table
  return {
    name: "workshop",
    surface: { kind: "wood", base: lit([214, 182, 140], light), accent: lit([176, 138, 96], light) },
    slots: LINE,
    board: { shape: "plate", colour: lit([58, 54, 56], light), outline: lit([124, 122, 124], light) },
    palette: palette(light, 0, 1),
    hand: { skin: lit([226, 176, 144], light), sleeve: lit(sleeve, light), enters: "below" },
    camera: { zoom: 1, angle: 0, shift: [between(-2, 2, ...keys, "x"), between(-2, 2, ...keys, "y")] },
    fps: 10,
    actionSeconds: between(0.62, 0.74, ...keys, "action"),
    seconds: between(4, 6, ...keys, "seconds"),
  };
}

const STUDIO_SURFACES: readonly Surface[] = [
  { kind: "cloth", base: [92, 118, 158], accent: [132, 156, 190] },
  { kind: "stone", base: [168, 168, 164], accent: [138, 140, 142] },
  { kind: "wood", base: [112, 76, 52], accent: [82, 54, 38] },
  { kind: "stripes", base: [196, 206, 196], accent: [150, 176, 160] },
  { kind: "tiles", base: [206, 198, 182], accent: [150, 142, 130] },
  { kind: "cloth", base: [150, 112, 128], accent: [178, 144, 156] },
];

const BOARDS: readonly Rgb[] = [[44, 50, 66], [66, 48, 42], [42, 62, 54], [40, 40, 42]]; // biome-ignore format: a table
const SKINS: readonly Rgb[] = [[240, 200, 172], [196, 142, 108], [140, 94, 68], [98, 66, 50]]; // biome-ignore format: a table

/** L2: the same task elsewhere: other backgrounds, shifted hues and light, a moved, turned and zoomed camera, other speed and frame rate. */
export function studio(...keys: RandomKey[]): Environment {
  const light = between(0.8, 1.12, ...keys, "light");
  const surface = pick(STUDIO_SURFACES, ...keys, "surface");
  return {
    ...workshop(...keys),
    name: "studio",
    surface: { kind: surface.kind, base: lit(surface.base, light), accent: lit(surface.accent, light) },
    board: { shape: "plate", colour: lit(pick(BOARDS, ...keys, "board"), light), outline: lit([132, 132, 136], light) },
    palette: palette(light, between(-9, 9, ...keys, "hue"), between(0.82, 1.05, ...keys, "saturation")),
    hand: {
      skin: lit(pick(SKINS, ...keys, "skin"), light),
      sleeve: lit(pick<Rgb>([[50, 50, 60], [150, 150, 146], [96, 78, 60]], ...keys, "sleeve"), light), // biome-ignore format: a table
      enters: "below",
    },
    camera: {
      zoom: between(0.85, 1.1, ...keys, "zoom"),
      angle: between(-0.07, 0.07, ...keys, "angle"),
      shift: [between(-4, 4, ...keys, "x"), between(-6, 6, ...keys, "y")],
    },
    fps: pick([8, 12, 15], ...keys, "fps"),
    actionSeconds: between(0.5, 0.74, ...keys, "action"),
  };
}

/** What each L3 domain looks like. */
const LOOKS: Record<Domain, Pick<Environment, "surface" | "slots" | "board" | "hand">> = {
  "Daily life": {
    surface: { kind: "tiles", base: [190, 200, 204], accent: [128, 140, 148] },
    slots: [[26, 64], [50, 46], [80, 38], [110, 46], [134, 64]], // biome-ignore format: a picture
    board: { shape: "path", colour: [70, 58, 48], outline: [138, 126, 116] },
    hand: { skin: [140, 94, 68], sleeve: [90, 92, 96], enters: "below" },
  },
  Hobbies: {
    surface: { kind: "grid", base: [88, 124, 112], accent: [150, 178, 168] },
    slots: [[44, 34], [80, 34], [116, 34], [62, 66], [98, 66]], // biome-ignore format: a picture
    board: { shape: "plate", colour: [62, 50, 60], outline: [134, 122, 132] },
    hand: { skin: [240, 200, 172], sleeve: [120, 90, 70], enters: "right" },
  },
  Recreation: {
    surface: { kind: "checks", base: [206, 188, 176], accent: [164, 128, 120] },
    slots: [[26, 40], [53, 64], [80, 40], [107, 64], [134, 40]], // biome-ignore format: a picture
    board: { shape: "path", colour: [46, 60, 52], outline: [120, 134, 126] },
    hand: { skin: [98, 66, 50], sleeve: [140, 140, 130], enters: "below" },
  },
  Work: {
    surface: { kind: "steel", base: [150, 156, 164], accent: [116, 122, 132] },
    slots: [[62, 34], [98, 34], [44, 66], [80, 66], [116, 66]], // biome-ignore format: a picture
    board: { shape: "plate", colour: [40, 44, 52], outline: [116, 122, 130] },
    hand: { skin: [108, 112, 118], sleeve: [64, 68, 76], enters: "left" },
  },
};

/** L3: another kind of place: board layout, hand and table by domain. */
export function elsewhere(domain: Domain, ...keys: RandomKey[]): Environment {
  const light = between(0.9, 1.1, ...keys, "light");
  const look = LOOKS[domain];
  return {
    ...workshop(...keys),
    name: "elsewhere",
    surface: { kind: look.surface.kind, base: lit(look.surface.base, light), accent: lit(look.surface.accent, light) },
    slots: look.slots,
    board: { shape: look.board.shape, colour: lit(look.board.colour, light), outline: lit(look.board.outline, light) },
    palette: palette(light, between(-5, 5, ...keys, "hue"), between(0.88, 1.04, ...keys, "saturation")),
    hand: { skin: lit(look.hand.skin, light), sleeve: lit(look.hand.sleeve, light), enters: look.hand.enters },
    camera: {
      zoom: between(0.95, 1.05, ...keys, "zoom"),
      angle: between(-0.04, 0.04, ...keys, "angle"),
      shift: [between(-3, 3, ...keys, "x"), between(-3, 3, ...keys, "y")],
    },
  };
}

/** A uniform draw in [low, high). */
export function between(low: number, high: number, ...keys: RandomKey[]): number {
  return low + (high - low) * uniform(...keys);
}

function palette(light: number, hueDegrees: number, saturation: number): Record<Colour, Rgb> {
  const shifted = COLOURS.map((name) => [name, lit(shiftHue(PALETTE[name], hueDegrees, saturation), light)] as const);
  return Object.fromEntries(shifted) as Record<Colour, Rgb>;
}

function lit(colour: Rgb, light: number): Rgb {
  const [r, g, b] = colour.map((value) => Math.min(255, Math.max(0, Math.round(value * light))));
  return [r!, g!, b!];
}

/** Turns the chroma (YIQ) by an angle and scales it; the luma stays. */
function shiftHue([r, g, b]: Rgb, degrees: number, saturation: number): Rgb {
  const luma = 0.299 * r + 0.587 * g + 0.114 * b;
  const i = 0.596 * r - 0.274 * g - 0.322 * b;
  const q = 0.211 * r - 0.523 * g + 0.312 * b;
  const cos = saturation * Math.cos((degrees * Math.PI) / 180);
  const sin = saturation * Math.sin((degrees * Math.PI) / 180);
  const i2 = cos * i - sin * q;
  const q2 = sin * i + cos * q;
  return [luma + 0.956 * i2 + 0.621 * q2, luma - 0.272 * i2 - 0.647 * q2, luma - 1.106 * i2 + 1.703 * q2];
}
