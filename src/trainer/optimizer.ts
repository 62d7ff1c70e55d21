/**
 * AdamW with a float32 master. A bfloat16 weight keeps the 16 bits it lacks beside it: weight and low bits together are an exact float32
 * number, so an update of 1e-6 is not lost to rounding and costs no second copy of the weights.
 *
 * Gradients of all parameters are views of one flat buffer: cleared by one call, measured by one call. Moments and low bits lie flat
 * too, so one kernel updates all parameters. Nothing here waits for the device.
 *
 * Of several ranks each keeps the state of an equal part of the flat layout: gradients are summed into the part of their rank, which updates
 * its weights; those go to the other ranks. A part may begin and end inside a parameter.
 */

import type { Config } from "../config/schema.ts";
import { ALONE, type Ranks } from "../distributed/ranks.ts";
import { CheckpointError } from "../errors.ts";
import type { Parameter } from "../model/parameter.ts";
import { hash64 } from "../random.ts";
import { op } from "../torch/dispatch.ts";
import { copy_, mul, reshape, slice, sqrt, zero_, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { BLOCK, flatLayout } from "./flat-layout.ts";
import { flattenWeights } from "./flat-weights.ts";
import { createMoments, MOMENT_DTYPES, type MomentKind, type Moments } from "./moments.ts";

const adamw = op("grove::adamw_");
const normOf = op("grove::grad_norm");

/** State of elements [begin, end) of a parameter, in this rank's part. */
interface Slot {
  name: string;
  weight: Tensor; // all of it
  start: number; // of the parameter, from the beginning of this rank's part on; negative where it begins before
  key: number[];
  decays: boolean;
  /** Views of the moments and, of a bfloat16 weight, the low bits. */
  state: StateEntry[];
}

/** A tensor of the optimizer's state, as a checkpoint keeps it: of a whole parameter, or of elements [begin, end) of what the whole one has. */
export interface StateEntry {
  name: string; // `<parameter>.<m, v, m_scale, v_scale or low>`
  tensor: Tensor; // in the parameter's shape where it is whole
  begin: number;
  end: number;
  isWhole: boolean;
}

export class AdamW implements Disposable {
  readonly #config: Config["optimizer"];
  readonly #ranks: Ranks;
  readonly #slots: Slot[]; // of the parameters that have elements in this rank's part
  readonly #grads: { weight: Tensor; grad: Tensor }[]; // of all parameters
  readonly #grad: Tensor; // flat
  readonly #ownGrad: Tensor; // this rank's part of it
  readonly #weights: Tensor | null; // flat, of several ranks
  readonly #low: Tensor | null; // int16, this rank's part
  readonly #moments: Moments; // of this rank's part
  #updates = 0;

  /**
   * Takes over the gradients of the parameters: from now on `tensor.grad` of each is a view of the optimizer's buffer.
   * @param seed with a parameter's name, the number of the update and the place in the parameter, the key of what rounds moments of few bits
   * @param ranks that make the same updates together; their weights move into one flat buffer
   */
  constructor(parameters: readonly Parameter[], config: Config["optimizer"], seed = 0, ranks: Ranks = ALONE) {
    this.#config = config;
    this.#ranks = ranks;
    const { device, dtype } = (parameters[0] as Parameter).tensor;
    const { starts, size } = flatLayout(
      parameters.map(({ tensor }) => tensor.numel),
      ranks.world,
    );
    const share = size / ranks.world;
    const first = ranks.rank * share;
    this.#weights = ranks.world > 1 ? flattenWeights(parameters, starts, size) : null;
    this.#grad = keep(zeros([size], { dtype, device }));
    this.#ownGrad = keep(slice(this.#grad, 0, first, first + share));
    this.#low = dtype === "bfloat16" ? keep(zeros([share], { dtype: "int16", device })) : null;
    this.#moments = createMoments(config.moments, share, device, config.offload);
    this.#grads = parameters.map(({ tensor }, i) => takeGradient(tensor, this.#grad, starts[i] as number));
    this.#slots = parameters.flatMap(({ name, tensor }, i) => {
      const start = (starts[i] as number) - first;
      if (start >= share || start + tensor.numel <= 0) return [];
      const state = this.#stateOf(name, tensor, start, share);
      return [{ name, weight: tensor, start, key: hash64(seed, "moments", name), decays: tensor.ndim >= 2, state }];
    });
  }

  #stateOf(name: string, { numel, shape }: Tensor, start: number, share: number): StateEntry[] {
    const begin = Math.max(0, -start);
    const end = Math.min(numel, share - start);
    const isWhole = end - begin === numel;
    const view = (kind: string, buffer: Tensor): StateEntry => {
      const tensor = keep(
        scope(() => reshape(slice(buffer, 0, start + begin, start + end), isWhole ? shape : [end - begin])),
      );
      return { name: `${name}.${kind}`, tensor, begin, end, isWhole };
    };
    const blocks = (kind: string, scales: Tensor): StateEntry => {
      const [from, to] = [begin / BLOCK, Math.ceil(end / BLOCK)];
      const tensor = keep(slice(scales, 0, start / BLOCK + from, start / BLOCK + to));
      return { name: `${name}.${kind}`, tensor, begin: from, end: to, isWhole };
    };
    const { m, v, mScale, vScale } = this.#moments.whole;
    const state = [view("m", m), view("v", v)];
    if (mScale !== null) state.push(blocks("m_scale", mScale));
    if (vScale !== null) state.push(blocks("v_scale", vScale));
    if (this.#low !== null) state.push(view("low", this.#low));
    return state;
  }

  /** Updates made so far, over all sessions of a run. */
  get updates(): number {
    return this.#updates;
  }

  zeroGrad(): void {
    zero_(this.#grad);
  }

  /** Makes the gradients, each rank's of its share of a batch, those of the whole batch, each rank's in its part. */
  sumGradients(): void {
    this.#ranks.group?.reduceScatter(this.#grad).wait();
  }

  /** Global norm of all gradients, of all parts: a float32 scalar on the device, owned by the caller. */
  gradNorm(): Tensor {
    const { group } = this.#ranks;
    if (group === null) return normOf(this.#grad);
    return scope(() => {
      const norm = normOf(this.#ownGrad);
      const squares = mul(norm, norm);
      group.allReduce(squares).wait();
      return sqrt(squares);
    });
  }

  /**
   * One update, of this rank's part; the other parts come from their ranks. `gradNorm` is what gradNorm() returned: gradients are scaled by min(1, maxGradNorm / (norm + 1e-6)) as torch's
   * clip_grad_norm_ does it, on the device. Where it is not finite the device leaves weights and state as they are; it is for the caller to read
   * the norm some time and to stop, since the update is counted all the same.
   */
  step(learningRate: number, gradNorm: Tensor): void {
    const { beta1, beta2, eps, weightDecay, maxGradNorm } = this.#config;
    this.#updates++;
    const slots = this.#slots;
    const layout = [
      slots.map(({ weight }) => weight),
      slots.map(({ start }) => start),
      slots.flatMap(({ key }) => key),
      slots.map(({ decays }) => decays),
    ];
    if (slots.length > 0) {
      this.#moments.update(({ m, v, mScale, vScale }, begin) => {
        const moments = [m, v, mScale, vScale, gradNorm, begin];
        const rates = [maxGradNorm, learningRate, beta1, beta2, eps, weightDecay, this.#updates];
        adamw(...layout, this.#ownGrad, this.#low, ...moments, ...rates);
      });
    }
    if (this.#weights !== null) this.#ranks.group?.allGather(this.#weights).wait();
  }

  /**
   * What a checkpoint keeps of this rank's part, by `<parameter>.<kind>`: m and v as optimizer.moments says, the scales of 8-bit ones, low bits of
   * bfloat16 weights. The tensors stay the optimizer's; with optimizer.offload they are on the host.
   */
  state(): StateEntry[] {
    this.#moments.settle();
    return this.#slots.flatMap(({ state }) => state);
  }

  /**
   * Takes up a saved state, of any number of ranks. `read` gives what is saved of an entry, all of it or its part, or undefined.
   * @throws CheckpointError naming the first tensor that is missing or has another shape, or the knob for moments of another type.
   */
  restore(updates: number, read: (entry: StateEntry) => Tensor | undefined, file: string): void {
    for (const [i, entry] of this.state().entries()) {
      const { name, tensor } = entry;
      scope(() => {
        const saved = read(entry);
        if (saved === undefined) throw new CheckpointError(file, `optimizer state ${name} is missing`);
        if (i === 0) this.#requireMoments(saved, file);
        if (saved.shape.join() !== tensor.shape.join() || saved.dtype !== tensor.dtype) {
          const wanted = `${tensor.dtype} [${tensor.shape}]`;
          throw new CheckpointError(file, `${name}: expected ${wanted}, got ${saved.dtype} [${saved.shape}]`);
        }
        copy_(tensor, saved);
      });
    }
    this.#updates = updates;
  }

  #requireMoments(saved: Tensor, file: string): void {
    const { moments } = this.#config;
    if (saved.dtype === MOMENT_DTYPES[moments]) return;
    const kinds = Object.keys(MOMENT_DTYPES) as MomentKind[];
    const kind = kinds.find((candidate) => MOMENT_DTYPES[candidate] === saved.dtype);
    throw new CheckpointError(
      file,
      `holds moments of ${kind ?? saved.dtype}, and optimizer.moments is ${moments}: a run keeps the type it began with`,
    );
  }

  [Symbol.dispose](): void {
    for (const { weight, grad } of this.#grads) {
      weight.setGrad(null);
      grad.free();
    }
    for (const { state } of this.#slots) for (const { tensor } of state) tensor.free();
    this.#moments[Symbol.dispose]();
    this.#weights?.free(); // the parameters keep the memory
    this.#ownGrad.free();
    this.#grad.free();
    this.#low?.free();
  }
}

/** Makes backward add into a view of the flat buffer, from element `start` on. */
function takeGradient(weight: Tensor, flat: Tensor, start: number): { weight: Tensor; grad: Tensor } {
  const grad = keep(scope(() => reshape(slice(flat, 0, start, start + weight.numel), weight.shape)));
  weight.setRequiresGrad(true);
  weight.setGrad(grad);
  return { weight, grad };
}
