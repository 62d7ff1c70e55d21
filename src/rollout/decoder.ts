/** The decode step by slots: its buffers, attention tables, sampler and recordings, which belong together as long as their addresses are in use. */

import { indexSelect } from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import { fromArray } from "../torch/tensor.ts";
import { DecodeBuffers } from "./decode-buffers.ts";
import { AttentionTables, FusedDecodePlan } from "./fused-decode-plan.ts";
import { type SamplingOptions, TokenSampler } from "./sample-token.ts";
import type { SamplerModel } from "./sampler-model.ts";
import type { SlotShape } from "./slot-shape.ts";
import { StepGraphs } from "./step-graphs.ts";

export interface DecoderOptions {
  /** Attention reads the prompt once per completion instead of once per group. */
  perRow: boolean;
  /** Whether steps are recorded and replayed. */
  graphs: boolean;
  /** Ids that are never sampled, and those that end a completion. */
  forbidden: readonly number[];
  stops: readonly number[];
}

export class Decoder implements Disposable {
  readonly buffers: DecodeBuffers;
  readonly tables: AttentionTables;
  readonly graphs: StepGraphs | null;
  readonly sampling: SamplingOptions;
  private readonly model: SamplerModel;
  private readonly sampler: TokenSampler;
  private readonly parts: Disposable[] = []; // newest first

  /** @throws ConfigError for sampling options out of range */
  constructor(model: SamplerModel, shape: SlotShape, sampling: SamplingOptions, options: DecoderOptions) {
    const { forbidden, stops, perRow, graphs } = options;
    const own = <T extends Disposable>(part: T): T => {
      this.parts.unshift(part);
      return part;
    };
    this.model = model;
    this.sampling = sampling;
    try {
      this.sampler = own(new TokenSampler(model.config.text.vocabSize, forbidden, sampling, model.device, stops));
      this.buffers = own(new DecodeBuffers(shape, model));
      this.tables = own(new AttentionTables(this.buffers, { perRow }));
      this.graphs = graphs ? own(new StepGraphs()) : null;
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Draws the first token of completions from the logits of their prompts; the buffers know about them already. */
  drawFirst(placements: readonly { slot: number; seat: number }[]): void {
    const { device } = this.model;
    const upload = (values: Int32Array) => fromArray(values, [values.length], { device });
    scope(() => {
      const seats = upload(Int32Array.from(placements, ({ seat }) => seat));
      const slots = upload(Int32Array.from(placements, ({ slot }) => slot));
      this.sampler.advance(this.buffers.promptLogits, seats, slots, this.buffers);
    });
  }

  /**
   * One more token for every completion that has a row and is not done.
   * @param chunks the most chunks of any prompt
   */
  step(chunks: number): void {
    const groups = this.groupsToLookAt();
    const run = () => this.enqueue(groups, chunks);
    if (this.graphs === null) run();
    else this.graphs.run(`${groups} groups of ${chunks} chunks`, run);
  }

  [Symbol.dispose](): void {
    for (const part of this.parts.splice(0)) part[Symbol.dispose]();
  }

  private enqueue(groups: number, chunks: number): void {
    const { model, buffers } = this;
    scope(() => {
      const plan = new FusedDecodePlan(buffers, this.tables, { groups, chunks });
      const slots = this.tables.slotOfRow;
      const positions = indexSelect(buffers.ropePositions, 1, slots);
      const hidden = model.forward(model.embed(indexSelect(buffers.tokens, 0, slots), null), positions, plan);
      this.sampler.advance(model.logits(hidden), buffers.everyRow, slots, buffers);
    });
  }

  /** How many groups attention looks at: few sizes, so that few shapes are recorded, and not all, since empty groups take time too. */
  private groupsToLookAt(): number {
    const { rows, group } = this.buffers.shape;
    let groups = Math.ceil(rows / group);
    while (groups < this.tables.groupsInUse) groups *= 2;
    return Math.min(groups, this.tables.groups);
  }
}
