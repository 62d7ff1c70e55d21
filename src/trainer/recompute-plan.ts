/**
 * What an update computes again so that it fits: of the levels that model.recompute allows, by part of the model, the cheapest that leaves room. The
 * results are the same bits at every level, so the choice may be made anew for each pack, from what is free. Arithmetic alone: a dry run asks too.
 */

import type { Config } from "../config/schema.ts";
import { isVisionFrozen } from "../config/trained-parts.ts";
import type { RecomputePlan } from "../model/pass.ts";
import type { Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { LEVELS, LORA_LEVELS } from "../model/recompute.ts";
import type { Recompute } from "../model/tape.ts";
import { activationBytes, type PackSize, recomputedShare, updateWorkspace } from "./activations.ts";

export interface RecomputeChoice {
  plan: RecomputePlan;
  /** Activations and workspace of the pack. */
  bytes: number;
  /** Of the layers' work in one forward, 0 to a little over 1. */
  share: number;
}

const ALLOWED: Record<Config["model"]["recompute"], readonly Recompute[]> = {
  auto: LEVELS,
  none: ["none"],
  selective: ["norms", "mlp"],
  layer: ["layer"],
};

function allowedFor(part: "language" | "vision", { model, lora }: Config): readonly Recompute[] {
  const allowed = ALLOWED[model.recompute];
  return lora?.parts.includes(part) ? allowed.filter((level) => LORA_LEVELS.includes(level)) : allowed;
}

/** What may be chosen for a pack, each dearer to compute and smaller than the one before. */
export function recomputeChoices(
  pack: PackSize,
  config: Config,
  shape: Qwen2VLConfig,
): [RecomputeChoice, ...RecomputeChoice[]] {
  const ofText = allowedFor("language", config);
  const vision = allowedFor("vision", config);
  const ofVision = isVisionFrozen(config) || pack.patches === 0 ? vision.slice(0, 1) : vision;
  const workspace = updateWorkspace(pack, config, shape);
  const all = ofText.flatMap((text) =>
    ofVision.map((vision): RecomputeChoice => {
      const plan = { text, vision };
      const bytes = activationBytes(pack, config, shape, plan) + workspace;
      return { plan, bytes, share: recomputedShare(pack, config, shape, plan) };
    }),
  );
  all.sort((a, b) => a.share - b.share || a.bytes - b.bytes);
  let least = Number.POSITIVE_INFINITY;
  return all.filter(({ bytes }) => {
    const smaller = bytes < least;
    least = Math.min(least, bytes);
    return smaller;
  }) as [RecomputeChoice, ...RecomputeChoice[]];
}

/** The first that fits into `room` bytes; the smallest where none does. */
export function cheapestThatFits(
  choices: readonly [RecomputeChoice, ...RecomputeChoice[]],
  room: number,
): RecomputeChoice {
  return choices.find(({ bytes }) => bytes <= room) ?? (choices.at(-1) as RecomputeChoice);
}

/** As src/rollout/free-memory.ts: a pass may fill so much of what the rest leaves, since estimates err and memory is in pieces. */
const SHARE = 0.8;

/** Between what is always there, a device's memory and a pass's room in it. */
export const roomBeside = {
  room: (always: number, device: number) => SHARE * (device - always),
  device: (always: number, bytes: number) => always + bytes / SHARE,
};

/** "language model norms, vision tower nothing", or "nothing" for both. */
export function describePlan({ text, vision }: RecomputePlan): string {
  const words: Record<Recompute, string> = {
    none: "nothing",
    norms: "norms",
    mlp: "norms and first products of MLPs",
    layer: "whole layers",
  };
  return text === vision ? words[text] : `language model ${words[text]}, vision tower ${words[vision]}`;
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}
