/** Draws the clips and the observation images. */

import { type RandomKey, shuffled } from "../../random.ts";
import { between, type Environment, SCENE_HEIGHT, SCENE_WIDTH } from "./environment.ts";
import * as raster from "./raster.ts";
import type { Piece, Recipe } from "./recipe.ts";
import { paintSurface } from "./surface.ts";
import { type HandPose, handAt, type Placement } from "./timeline.ts";

/** Everything that determines the pixels of one video. */
export interface Clip {
  environment: Environment;
  recipe: Recipe;
  /** How many pieces are on the board at the end, 1..4. */
  placed: number;
  placements: readonly Placement[];
  frameCount: number;
  keys: readonly RandomKey[];
}

const PIECE_RADIUS = 10.5; // scene units
const TRAY_PIECE_RADIUS = 14;

/** All frames: uint8 [frameCount, SCENE_HEIGHT, SCENE_WIDTH, 3]. */
export function renderClip(clip: Clip): Uint8Array {
  const { environment, placements, recipe, keys } = clip;
  const size = SCENE_WIDTH * SCENE_HEIGHT * 3;
  const frames = new Uint8Array(clip.frameCount * size);
  // The table with what lies on it changes only when a piece is released: it is drawn once and copied under each frame's hand.
  const table = new raster.Canvas(SCENE_WIDTH, SCENE_HEIGHT, environment.camera);
  const frame = new raster.Canvas(SCENE_WIDTH, SCENE_HEIGHT, environment.camera);
  paintSurface(table, environment.surface, ...keys, "surface");
  drawBoard(table, environment);
  let lying = 0;
  for (let i = 0; i < clip.frameCount; i++) {
    const time = i / environment.fps;
    while (lying < placements.length && placements[lying]!.release <= time) {
      const [x, y] = environment.slots[lying]!;
      drawPiece(table, environment, recipe[lying]!, x, y, PIECE_RADIUS, tilt(keys, lying));
      lying++;
    }
    frame.pixels.set(table.pixels);
    const pose = handAt(environment, placements, time);
    if (pose !== null) {
      drawHand(frame, environment, pose, () => {
        if (pose.carries === null) return;
        const [x, y] = pose.tip;
        drawPiece(frame, environment, recipe[pose.carries]!, x, y, PIECE_RADIUS, tilt(keys, pose.carries));
      });
    }
    frames.set(frame.pixels, i * size);
  }
  return frames;
}

/**
 * The current observation: a close-up of the supply tray with every piece at hand, the hand at rest. It is the same however far the work
 * has come.
 * @returns uint8 [SCENE_HEIGHT, SCENE_WIDTH, 3]
 */
export function renderObservation(
  environment: Environment,
  supply: readonly Piece[],
  ...keys: RandomKey[]
): Uint8Array {
  const canvas = new raster.Canvas(SCENE_WIDTH, SCENE_HEIGHT, environment.camera);
  paintSurface(canvas, environment.surface, ...keys, "surface");
  canvas.draw(raster.box(80, 54, 74, 50, 0, 8), [0, 0, 0], 0.35, 6);
  canvas.draw(raster.box(80, 54, 72, 48, 0, 8), environment.board.outline);
  canvas.draw(raster.box(80, 54, 69, 45, 0, 6), environment.board.colour);
  for (const [cell, piece] of shuffled(supply, ...keys, "cells").entries()) {
    const x = 28 + 35 * (cell % 4) + between(-3, 3, ...keys, "x", cell);
    const y = 32 + 42 * Math.floor(cell / 4) + between(-3, 3, ...keys, "y", cell);
    drawPiece(canvas, environment, piece, x, y, TRAY_PIECE_RADIUS, between(-0.3, 0.3, ...keys, "tilt", cell));
  }
  const tip: [number, number] = [between(30, 130, ...keys, "hand"), 103];
  drawHand(canvas, environment, { tip, direction: [0, -1], carries: null }, () => {});
  return canvas.pixels;
}

function tilt(keys: readonly RandomKey[], slot: number): number {
  return between(-0.15, 0.15, ...keys, "tilt", slot);
}

function drawBoard(canvas: raster.Canvas, { board, slots }: Environment): void {
  const parts: raster.Outline[] = [];
  if (board.shape === "path") {
    slots.slice(1).forEach(([x, y], i) => {
      parts.push(raster.capsule(slots[i]![0], slots[i]![1], x, y, 16));
    });
  } else {
    const xs = slots.map(([x]) => x);
    const ys = slots.map(([, y]) => y);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    parts.push(
      raster.box((left + right) / 2, (top + bottom) / 2, (right - left) / 2 + 17, (bottom - top) / 2 + 17, 0, 6),
    );
  }
  for (const part of parts)
    canvas.draw({ ...part, distance: (x, y) => part.distance(x - 1, y - 2) }, [0, 0, 0], 0.3, 5);
  for (const part of parts) canvas.draw(part, board.colour);
  for (const [x, y] of slots) canvas.draw(raster.ring(x, y, 11.5, 1.4), board.outline);
}

function drawPiece(
  canvas: raster.Canvas,
  environment: Environment,
  piece: Piece,
  x: number,
  y: number,
  radius: number,
  angle: number,
): void {
  const outline = pieceOutline(piece, x, y, radius, angle);
  const colour = environment.palette[piece.colour];
  const rim: raster.Rgb = [colour[0] * 0.55, colour[1] * 0.55, colour[2] * 0.55];
  const [a, b] = outline.extent;
  const grown: raster.Outline = {
    ...outline,
    distance: (px, py) => outline.distance(px, py) - 0.8,
    extent: [a + 0.8, b + 0.8],
  };
  canvas.draw(grown, rim, 0.8);
  canvas.draw(outline, colour);
}

/** Shapes of about the same area; `radius` is that of the ring. */
function pieceOutline(piece: Piece, x: number, y: number, radius: number, angle: number): raster.Outline {
  switch (piece.shape) {
    case "star":
      return raster.star(x, y, radius * 1.15, angle);
    case "ring":
      return raster.ring(x, y, radius, radius * 0.46);
    case "square":
      return raster.box(x, y, radius * 0.8, radius * 0.8, angle, 1);
    case "moon":
      return raster.crescent(x, y, radius, angle - 0.5);
    case "cross":
      return raster.cross(x, y, radius * 0.95, radius * 0.36, angle);
    case "triangle":
      return raster.triangle(x, y + radius * 0.15, radius * 1.15, angle);
  }
}

/** Arm, palm and two fingers around the tip; `between` draws what the fingers hold, above the palm and below the fingers. */
function drawHand(canvas: raster.Canvas, environment: Environment, pose: HandPose, held: () => void): void {
  const { skin, sleeve } = environment.hand;
  const [tx, ty] = pose.tip;
  const [dx, dy] = pose.direction;
  const at = (back: number, side: number) => [tx - dx * back - dy * side, ty - dy * back + dx * side] as const;
  const shade: raster.Rgb = [skin[0] * 0.8, skin[1] * 0.8, skin[2] * 0.8];
  const palm = at(19, 0);
  const angle = Math.atan2(dy, dx);
  const limb = (from: readonly [number, number], to: readonly [number, number], radius: number) =>
    raster.capsule(from[0], from[1], to[0], to[1], radius);
  canvas.draw(limb(at(24, -3), at(170, -3), 9), [0, 0, 0], 0.22, 6);
  canvas.draw(limb(at(20, 0), at(40, 0), 5.5), shade);
  canvas.draw(limb(at(38, 0), at(170, 0), 8), sleeve);
  canvas.draw(raster.ellipse(palm[0], palm[1], 9.5, 8.5, angle), skin);
  held();
  canvas.draw(limb(at(16, -6), at(6, -9.5), 2.6), skin);
  canvas.draw(limb(at(16, 6), at(6, 9.5), 2.6), skin);
}
