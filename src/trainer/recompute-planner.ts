/** Chooses what a run's updates compute again, from what is free just then. */

import type { Config } from "../config/schema.ts";
import { log } from "../log.ts";
import type { Packed } from "../model/packed.ts";
import type { RecomputePlan } from "../model/pass.ts";
import type { Qwen2VLConfig } from "../model/qwen2vl/config.ts";
import { availableBytes } from "../rollout/free-memory.ts";
import type { Device } from "../torch/tensor.ts";
import { packSize } from "./activations.ts";
import { cheapestThatFits, describePlan, percent, recomputeChoices } from "./recompute-plan.ts";

/** Chooses for each pack of a run, and logs what it has not chosen before. */
export class RecomputePlanner {
  readonly #config: Config;
  readonly #shape: Qwen2VLConfig;
  readonly #roomFor: () => number;
  readonly #said = new Set<string>();

  /** @param roomFor bytes that a pass may take, asked before each */
  constructor(
    config: Config,
    shape: Qwen2VLConfig,
    roomFor: () => number = () => availableBytes(config.device as Device),
  ) {
    this.#config = config;
    this.#shape = shape;
    this.#roomFor = roomFor;
  }

  for(packed: Packed): RecomputePlan {
    const size = packSize(packed);
    const choices = recomputeChoices(size, this.#config, this.#shape);
    if (choices.length === 1) return choices[0].plan;
    const room = this.#roomFor();
    const { plan, bytes, share } = cheapestThatFits(choices, room);
    const said = describePlan(plan);
    if (!this.#said.has(said)) {
      this.#said.add(said);
      const numbers = { tokens: size.tokens, needsGiB: gib(bytes), roomGiB: gib(room), ofAForward: percent(share) };
      if (bytes > room) log.warn(numbers, `an update computes ${said} again and may still not fit`);
      else log.info(numbers, `an update computes ${said} again`);
    }
    return plan;
  }
}

function gib(bytes: number): number {
  return Number((bytes / 2 ** 30).toPrecision(3));
}
