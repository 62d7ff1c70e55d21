/** One rollout by slots, from the first prompt to the last completion. */

import { promptChunks } from "../model/prompt-chunks.ts";
import { indexCopy_ } from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import { fromArray } from "../torch/tensor.ts";
import type { Prompt } from "../types.ts";
import { CompletionStore } from "./completion-store.ts";
import type { Decoder } from "./decoder.ts";
import { type DoneFlags, doneFlags } from "./done-flags.ts";
import type { AttentionRow } from "./fused-decode-plan.ts";
import type { PhaseClock } from "./phase-clock.ts";
import { sampleKey } from "./philox.ts";
import { prefillTogether } from "./prefill.ts";
import { packPrompts } from "./prefill-packs.ts";
import type { Sampled, SampleRequest } from "./sampled.ts";
import type { SamplerModel } from "./sampler-model.ts";
import { type Placement, type SeatedPrompt, SlotScheduler } from "./slot-scheduler.ts";

export interface SlotRolloutOptions {
  model: SamplerModel;
  decoder: Decoder;
  /** Most rows in use; the decoder may have a few more. */
  maxConcurrent: number;
  /** Tokens of prompts in one pass; 0: every prompt in a pass of its own. */
  prefillTokens: number;
  clock: PhaseClock;
}

export class SlotRollout implements Disposable {
  steps = 0;
  private readonly options: SlotRolloutOptions;
  private readonly request: SampleRequest;
  private readonly scheduler: SlotScheduler;
  private readonly flags: DoneFlags;
  private readonly store: CompletionStore;
  private readonly chunks: number;
  private readonly starts = new Map<number, number>(); // seat -> first token in the arena
  private arranged: readonly Placement[] = []; // as the attention tables have it

  constructor(request: SampleRequest, options: SlotRolloutOptions) {
    const { buffers } = options.decoder;
    const { slots, seats, arenaTokens } = buffers.shape;
    const rows = Math.min(buffers.shape.rows, options.maxConcurrent);
    const { prompts, groupSize, maxNewTokens } = request;
    const promptLengths = prompts.map((prompt) => prompt.inputIds.length);
    this.options = options;
    this.request = request;
    this.chunks = Math.max(...promptLengths.map(promptChunks));
    this.scheduler = new SlotScheduler({ promptLengths, groupSize, rows, slots, seats, arenaTokens, maxNewTokens });
    this.flags = doneFlags(buffers.done);
    try {
      this.store = new CompletionStore(buffers, prompts.length * groupSize);
    } catch (error) {
      this.flags[Symbol.dispose](); // out of memory half-way
      throw error;
    }
  }

  /** Samples everything. [prompts][G] */
  run(): Sampled[][] {
    this.options.decoder.buffers.clear();
    while (!this.scheduler.finished) {
      this.admit();
      this.step();
      this.retire();
    }
    const all = this.store.read();
    const { prompts, groupSize } = this.request;
    return prompts.map((_, q) => all.slice(q * groupSize, (q + 1) * groupSize));
  }

  [Symbol.dispose](): void {
    this.flags[Symbol.dispose]();
    this.store[Symbol.dispose]();
  }

  private admit(): void {
    const { clock, decoder } = this.options;
    const { prompts, placements } = this.scheduler.admit();
    if (placements.length === 0) return;
    if (prompts.length > 0) clock.time("prefill", () => this.prefill(prompts));
    decoder.buffers.start(placements.map((placement) => this.startOf(placement)));
    decoder.drawFirst(placements);
    this.look();
  }

  /** Puts keys and values of prompts into the arena, and the logits behind them to their seats. */
  private prefill(seated: readonly SeatedPrompt[]): void {
    const { model, decoder, prefillTokens, clock } = this.options;
    const { buffers } = decoder;
    const lengths = seated.map(({ question }) => this.promptOf(question).inputIds.length);
    for (const run of packPrompts(lengths, prefillTokens)) {
      scope(() => {
        const int64 = (values: readonly number[]) =>
          fromArray(BigInt64Array.from(values, BigInt), [values.length], { device: model.device });
        const some = run.map((i) => seated[i] as SeatedPrompt);
        const places = int64(run.flatMap((i) => tokensFrom((seated[i] as SeatedPrompt).start, lengths[i] as number)));
        const logits = prefillTogether(
          model,
          some.map(({ question }) => this.promptOf(question)),
          (layer, k, v) => buffers.writePrompts(layer, places, k, v),
          clock,
        );
        indexCopy_(buffers.promptLogits, 0, int64(some.map(({ seat }) => seat)), logits);
      });
    }
    for (const { seat, start } of seated) this.starts.set(seat, start);
  }

  private step(): void {
    const { decoder } = this.options;
    const arranged = this.scheduler.arrange();
    if (arranged.length === 0) return;
    if (arranged !== this.arranged) decoder.tables.write(arranged.map((placement) => this.rowOf(placement)));
    this.arranged = arranged;
    decoder.step(this.chunks);
    this.steps++;
    this.scheduler.advance();
    this.look();
  }

  private retire(): void {
    const retired = this.scheduler.retire();
    if (retired.length === 0) return;
    const { groupSize, onEnded } = this.request;
    const ended = retired.map(({ slot, question, completion }) => ({ slot, index: question * groupSize + completion }));
    this.store.collect(ended);
    onEnded(retired.length);
  }

  private look(): void {
    const look = this.flags.look(this.scheduler.clock);
    if (look !== null) this.scheduler.observe(look.done, look.at);
  }

  private rowOf({ slot, seat, question, completion }: Placement): AttentionRow {
    const start = this.starts.get(seat) as number;
    return { slot, seat, column: completion, start, length: this.promptOf(question).inputIds.length };
  }

  private startOf({ slot, question, completion }: Placement) {
    const { seed, step, firsts, limitOf } = this.request;
    const prompt = this.promptOf(question);
    return {
      slot,
      key: sampleKey(seed, step, prompt.sample.id, (firsts[question] as number) + completion),
      limit: limitOf(question, completion),
      nextPosition: prompt.nextPosition,
    };
  }

  private promptOf(question: number): Prompt {
    return this.request.prompts[question] as Prompt;
  }
}

function tokensFrom(start: number, length: number): number[] {
  return Array.from({ length }, (_, i) => start + i);
}
