/** When each piece is placed in a clip, and where the hand is at any moment. */

import { type RandomKey, uniform } from "../../random.ts";
import { between, type Environment, SCENE_HEIGHT, SCENE_WIDTH } from "./environment.ts";
import { smooth } from "./surface.ts";

/** One piece on its way to its slot. All times in seconds. */
export interface Placement {
  slot: number; // also the piece's index in the recipe
  enter: number;
  release: number; // from here on the piece lies on the board
  leave: number; // the hand is out of view
  /** Where along the frame's edge the hand comes in, relative to the slot, in scene units. */
  drift: number;
}

const STILL_START = 0.2;
/** Keeps the hand out of the last 0.6 s of frames at 8 fps too, where a clip may end 1.5 frames early. */
const STILL_END = 0.8;
const LANDED = 0.42; // of an action: the piece is over its slot
const RELEASED = 0.52; // of an action: the hand starts to withdraw

/**
 * Spreads `placed` actions over the clip with random pauses before, between and after them. An action takes as long whatever their number,
 * and the clip's length is drawn without knowing it, so that neither tells the count.
 */
export function schedule(environment: Environment, placed: number, ...keys: RandomKey[]): Placement[] {
  const { seconds, actionSeconds } = environment;
  const slack = seconds - STILL_START - STILL_END - placed * actionSeconds;
  const pauses = Array.from({ length: placed + 1 }, (_, i) => -Math.log(1 - uniform(...keys, "pause", i)));
  const total = pauses.reduce((sum, pause) => sum + pause, 0);
  let time = STILL_START;
  return Array.from({ length: placed }, (_, slot) => {
    const enter = time + (slack * pauses[slot]!) / total;
    time = enter + actionSeconds;
    const drift = between(-14, 14, ...keys, "drift", slot);
    return { slot, enter, release: enter + RELEASED * actionSeconds, leave: time, drift };
  });
}

export interface HandPose {
  /** Fingertips, in scene units. */
  tip: [x: number, y: number];
  /** Unit vector from the arm to the fingertips. */
  direction: [x: number, y: number];
  /** Slot of the piece in its fingers, or null when it has let go. */
  carries: number | null;
}

/** The hand at a time, or null while it is out of view. */
export function handAt(environment: Environment, placements: readonly Placement[], time: number): HandPose | null {
  const current = placements.find((placement) => time >= placement.enter && time < placement.leave);
  if (current === undefined) return null;
  const target = environment.slots[current.slot]!;
  const outside = entryPoint(environment, target, current.drift);
  const progress = (time - current.enter) / (current.leave - current.enter);
  const near = progress < RELEASED ? smooth(Math.min(1, progress / LANDED)) : smooth((1 - progress) / (1 - RELEASED));
  const tip: [number, number] = [
    outside[0] + (target[0] - outside[0]) * near,
    outside[1] + (target[1] - outside[1]) * near,
  ];
  const length = Math.hypot(target[0] - outside[0], target[1] - outside[1]);
  const direction: [number, number] = [(target[0] - outside[0]) / length, (target[1] - outside[1]) / length];
  return { tip, direction, carries: time < current.release ? current.slot : null };
}

/** Beyond the frame by more than a piece, whatever the camera does. */
function entryPoint(environment: Environment, target: readonly [number, number], drift: number): [number, number] {
  const beyond = 30;
  if (environment.hand.enters === "below") return [target[0] + drift, SCENE_HEIGHT + beyond];
  const x = environment.hand.enters === "right" ? SCENE_WIDTH + beyond : -beyond;
  return [x, target[1] + 30 + drift];
}
