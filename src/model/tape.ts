/**
 * Backward by hand over a chain of steps, autograd only inside one step. A step's input and output are cut off from its neighbours, so
 * nothing is kept beyond what one layer needs, a layer can be recomputed, and gradients of a layer are complete as soon as the walk
 * has passed it.
 */

import { invariant } from "../errors.ts";
import { backward, enableGrad, noGrad } from "../torch/autograd.ts";
import { detach } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";

/**
 * Runs one step of a chain: the input of the first one is null or a constant (it has no input that wants a gradient). The result is the caller's. `part` is the part
 * of the model whose parameters the step uses.
 */
export type Step = (input: Tensor | null, run: (input: Tensor | null) => Tensor, part: string) => Tensor;

/** Is told where a walk over a model's parts is: forward over their weights, or back over their gradients. */
export interface PartWatch {
  /** Before a part's parameters, or their gradients, are used; possibly more than once. */
  before(part: string): void;
  /** Once they are used for the last time. */
  after(part: string): void;
}

/** A step that records nothing. */
export const plainStep: Step = (input, run) => scope(() => noGrad(() => run(input)));

/** A step that `watch` is told of. */
export function watched(step: Step, watch: PartWatch | undefined): Step {
  if (watch === undefined) return step;
  return (input, run, part) => {
    watch.before(part);
    const output = step(input, run, part);
    watch.after(part);
    return output;
  };
}

/**
 * How much of a layer is computed again in the backward instead of being kept, from nothing to all of it; model/recompute.ts says what each keeps
 * and costs. "norms" and "mlp" are what model.recompute calls selective.
 */
export type Recompute = "none" | "norms" | "mlp" | "layer";

interface RecordedStep {
  run: (input: Tensor | null) => Tensor;
  part: string;
  leaf: Tensor | null;
  output: Tensor | null; // null: to be computed again
}

export class Tape implements Disposable {
  readonly #steps: RecordedStep[] = [];

  /**
   * A step whose graph is kept. The output shares no graph with the input. Freeing input and output is the caller's business; the tape holds
   * its own.
   */
  readonly step: Step = (input, run, part) => {
    const recorded = this.#begin(input, run, part);
    const output = keep(scope(() => enableGrad(() => run(recorded.leaf))));
    recorded.output = output;
    return detach(output);
  };

  /** A step of which the input alone is kept: `run` is called again in the backward, and what it closes over must live until then. */
  readonly stepAgain: Step = (input, run, part) => {
    const { leaf } = this.#begin(input, run, part);
    return scope(() => noGrad(() => run(leaf)));
  };

  /** Whether anything has been recorded: what comes after it has an input that wants a gradient. */
  get isRecording(): boolean {
    return this.#steps.length > 0;
  }

  /** A step is the tape's before it runs, so that dispose() frees its input where it throws. Of the first step the input, where it has one, is a constant. */
  #begin(input: Tensor | null, run: RecordedStep["run"], part: string): RecordedStep {
    const isFirst = this.#steps.length === 0;
    invariant(input !== null || isFirst, "only the first step of a tape has no input");
    const leaf = input === null ? null : keep(detach(input)).setRequiresGrad(!isFirst);
    const recorded: RecordedStep = { run, part, leaf, output: null };
    this.#steps.push(recorded);
    return recorded;
  }

  /** Walks back from the gradient of the last output, adding to the gradients of every parameter the steps used. Once per tape. */
  backward(dOutput: Tensor, watch?: PartWatch): void {
    let gradient = dOutput;
    // A step stays on the tape until it is done with: what it holds is dispose()'s to free where something throws.
    for (let last = this.#steps.at(-1); last !== undefined; last = this.#steps.at(-1)) {
      const { run, part, leaf, output } = last;
      watch?.before(part);
      const next = scope(() => {
        const y = output ?? enableGrad(() => run(leaf));
        backward([y], [gradient]);
        return leaf?.grad ?? null;
      });
      watch?.after(part);
      if (gradient !== dOutput) gradient.free();
      leaf?.free();
      output?.free();
      this.#steps.pop();
      if (next === null) {
        invariant(this.#steps.length === 0, "a step gave its input no gradient");
        return;
      }
      gradient = next;
    }
  }

  [Symbol.dispose](): void {
    for (const { leaf, output } of this.#steps.splice(0)) {
      leaf?.free();
      output?.free();
    }
  }
}
