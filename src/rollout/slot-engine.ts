/**
 * Continuous batching: completions of many prompts in a fixed number of slots, a slot taking the next completion when one has ended, and steps of a
 * fixed number of rows, which completions take turns at. A step is one sequence of kernels on buffers that stay, on CUDA one graph; the host only moves
 * completions in and out, a few steps behind the device.
 */

import { isDeepStrictEqual } from "node:util";
import { memoryStats } from "../torch/cuda.ts";
import { sizesOf } from "./decode-buffers.ts";
import { Decoder, type DecoderOptions } from "./decoder.ts";
import { availableBytes } from "./free-memory.ts";
import { KEPT_SHARE } from "./memory-shares.ts";
import { PhaseClock } from "./phase-clock.ts";
import { type SampleEngine, type SampleRequest, type SampleResult, tokensOfSteps } from "./sampled.ts";
import type { SamplerModel } from "./sampler-model.ts";
import { SlotRollout } from "./slot-rollout.ts";
import { planSlots, type SlotShape } from "./slot-shape.ts";

export interface SlotEngineOptions extends DecoderOptions {
  maxConcurrent: number;
  prefillTokens: number;
  /**
   * Makes a completion independent, bit for bit, of what else is sampled: prompts are computed one by one, steps always have the same number of
   * rows. (Attention is independent anyway.)
   */
  deterministic: boolean;
}

export class SlotEngine implements SampleEngine {
  private readonly model: SamplerModel;
  private readonly options: SlotEngineOptions;
  private kept: Decoder | null = null;

  constructor(model: SamplerModel, options: SlotEngineOptions) {
    this.model = model;
    this.options = options;
  }

  sample(request: SampleRequest): SampleResult {
    const model = this.model;
    const options = this.options;
    using clock = new PhaseClock(model.device);
    const decoder = this.open(request);
    try {
      const recorded = decoder.graphs?.captureS ?? 0;
      using rollout = new SlotRollout(request, {
        model,
        decoder,
        maxConcurrent: options.maxConcurrent,
        prefillTokens: options.deterministic ? 0 : options.prefillTokens,
        clock,
      });
      const completions = rollout.run();
      const { buffers, graphs } = decoder;
      const { rows } = buffers.shape;
      const [wholeS, prefillS] = [clock.total(), clock.seconds("prefill")];
      const captureS = (graphs?.captureS ?? 0) - recorded;
      const stats = {
        prefillS,
        visionS: clock.seconds("vision"),
        decodeS: Math.max(0, wholeS - prefillS - captureS),
        captureS,
        steps: rollout.steps,
        rows,
        occupancy: rollout.steps === 0 ? 0 : tokensOfSteps(completions) / (rollout.steps * rows),
        kvBytes: buffers.kvBytes,
      };
      const small = model.device !== "cpu" && buffers.bytes <= KEPT_SHARE * memoryStats().total;
      this.kept = small ? decoder : null;
      return { completions, stats };
    } finally {
      if (this.kept === null) decoder[Symbol.dispose]();
    }
  }

  [Symbol.dispose](): void {
    this.kept?.[Symbol.dispose]();
    this.kept = null;
  }

  /** The decoder of the last rollout where it serves this one too, else a new one; it belongs to the caller. */
  private open(request: SampleRequest): Decoder {
    const { model, options } = this;
    const kept = this.kept;
    this.kept = null;
    try {
      const shape = planSlots(
        {
          promptLengths: request.prompts.map((prompt) => prompt.inputIds.length),
          groupSize: request.groupSize,
          maxNewTokens: request.maxNewTokens,
          maxConcurrent: options.maxConcurrent,
          fixedRows: options.deterministic,
        },
        sizesOf(model),
        availableBytes(model.device) + (kept?.buffers.bytes ?? 0),
      );
      if (kept !== null && serves(kept.buffers.shape, shape) && isDeepStrictEqual(kept.sampling, request.sampling))
        return kept;
      kept?.[Symbol.dispose]();
      return new Decoder(model, shape, request.sampling, options);
    } catch (error) {
      kept?.[Symbol.dispose]();
      throw error;
    }
  }
}

/** Whether buffers of one shape serve where another is asked for: rows and strides the same, room no less. */
function serves(present: SlotShape, asked: SlotShape): boolean {
  const { rows, slots, ownSlots, group, seats, arenaTokens } = present;
  const same = rows === asked.rows && ownSlots === asked.ownSlots && group === asked.group;
  return same && slots >= asked.slots && seats >= asked.seats && arenaTokens >= asked.arenaTokens;
}
