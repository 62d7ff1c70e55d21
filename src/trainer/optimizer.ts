/**
 * AdamW with a float32 master. A bfloat16 weight keeps the 16 bits it lacks beside it: weight and low bits together are an exact float32
 * number, so an update of 1e-6 is not lost to rounding and costs no second copy of the weights.
 *
 * Gradients of all parameters are views of one flat buffer: cleared by one call, measured by one call. Moments and low bits lie flat
 * too, so one kernel updates all parameters. Nothing here waits for the device.
 */

import type { Config } from "../config/schema.ts";
import type { Ranks } from "../distributed/ranks.ts";
import { CheckpointError } from "../errors.ts";
import type { Parameter } from "../model/parameter.ts";
import { hash64 } from "../random.ts";
import { op } from "../torch/dispatch.ts";
import { copy_, reshape, slice, zero_, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { BLOCK, flatLayout } from "./flat-layout.ts";
import { createMoments, MOMENT_DTYPES, type MomentKind, type Moments } from "./moments.ts";

const adamw = op("grove::adamw_");
const normOf = op("grove::grad_norm");

interface Slot {
  name: string;
  weight: Tensor;
  grad: Tensor;
  /** Views of the moments and, of a bfloat16 weight, the low bits, by the last part of their names in a checkpoint. */
  state: [kind: "m" | "v" | "m_scale" | "v_scale" | "low", tensor: Tensor][];
}

export class AdamW implements Disposable {
  readonly #config: Config["optimizer"];
  readonly #slots: Slot[];
  readonly #grad: Tensor;
  readonly #low: Tensor | null; // int16
  readonly #moments: Moments;
  /** What the update must know of the parameters; see native/adamw.cc. */
  readonly #starts: number[];
  readonly #keys: number[];
  readonly #decays: boolean[];
  #updates = 0;

  /**
   * Takes over the gradients of the parameters: from now on `tensor.grad` of each is a view of the optimizer's buffer.
   * @param seed with a parameter's name, the number of the update and the place in the parameter, the key of what rounds moments of few bits
   */
  constructor(parameters: readonly Parameter[], config: Config["optimizer"], seed = 0) {
    this.#config = config;
    const { device, dtype } = (parameters[0] as Parameter).tensor;
    const { starts, size } = flatLayout(parameters.map(({ tensor }) => tensor.numel));
    this.#starts = starts;
    this.#keys = parameters.flatMap(({ name }) => hash64(seed, "moments", name));
    this.#decays = parameters.map(({ tensor }) => tensor.ndim >= 2);
    this.#grad = keep(zeros([size], { dtype, device }));
    this.#low = dtype === "bfloat16" ? keep(zeros([size], { dtype: "int16", device })) : null;
    this.#moments = createMoments(config.moments, size, device, config.offload);
    this.#slots = parameters.map((parameter, i) => this.#slot(parameter, starts[i] as number));
  }

  #slot({ name, tensor }: Parameter, start: number): Slot {
    const end = start + tensor.numel;
    const view = (buffer: Tensor) => keep(scope(() => reshape(slice(buffer, 0, start, end), tensor.shape)));
    const blocks = (scales: Tensor) => keep(slice(scales, 0, start / BLOCK, Math.ceil(end / BLOCK)));
    const { m, v, mScale, vScale } = this.#moments.whole;
    const state: Slot["state"] = [
      ["m", view(m)],
      ["v", view(v)],
    ];
    if (mScale !== null) state.push(["m_scale", blocks(mScale)]);
    if (vScale !== null) state.push(["v_scale", blocks(vScale)]);
    if (this.#low !== null) state.push(["low", view(this.#low)]);
    const grad = view(this.#grad);
    tensor.setRequiresGrad(true);
    tensor.setGrad(grad);
    return { name, weight: tensor, grad, state };
  }

  /** Updates made so far, over all sessions of a run. */
  get updates(): number {
    return this.#updates;
  }

  zeroGrad(): void {
    zero_(this.#grad);
  }

  /** Makes the gradients, each rank's of its share of a batch, those of the whole batch. */
  sumGradients(ranks: Ranks): void {
    ranks.sumTensor(this.#grad);
  }

  /** Global norm of all gradients: a float32 scalar on the device, owned by the caller. */
  gradNorm(): Tensor {
    return normOf(this.#grad);
  }

  /**
   * One update. `gradNorm` is what gradNorm() returned: gradients are scaled by min(1, maxGradNorm / (norm + 1e-6)) as torch's
   * clip_grad_norm_ does it, on the device. Where it is not finite the device leaves weights and state as they are; it is for the caller to read
   * the norm some time and to stop, since the update is counted all the same.
   */
  step(learningRate: number, gradNorm: Tensor): void {
    const { beta1, beta2, eps, weightDecay, maxGradNorm } = this.#config;
    this.#updates++;
    const weights = this.#slots.map(({ weight }) => weight);
    const layout = [weights, this.#starts, this.#keys, this.#decays];
    this.#moments.update(({ m, v, mScale, vScale }, begin) => {
      const moments = [m, v, mScale, vScale, gradNorm, begin];
      const rates = [maxGradNorm, learningRate, beta1, beta2, eps, weightDecay, this.#updates];
      adamw(...layout, this.#grad, this.#low, ...moments, ...rates);
    });
  }

  /**
   * What a checkpoint keeps, by `<parameter>.<kind>`: m and v as optimizer.moments says, the scales of 8-bit ones, low bits of bfloat16 weights. The
   * tensors stay the optimizer's; with optimizer.offload they are on the host.
   */
  state(): { name: string; tensor: Tensor }[] {
    this.#moments.settle();
    return this.#slots.flatMap(({ name, state }) =>
      state.map(([kind, tensor]) => ({ name: `${name}.${kind}`, tensor })),
    );
  }

  /**
   * Takes up a saved state. `read` gives the tensor of a name, or undefined.
   * @throws CheckpointError naming the first tensor that is missing or has another shape, or the knob for moments of another type.
   */
  restore(updates: number, read: (name: string) => Tensor | undefined, file: string): void {
    const first = `${this.#slots[0]?.name}.m`;
    scope(() => {
      const saved = read(first);
      if (saved !== undefined) this.#requireMoments(saved, file);
    });
    for (const { name, tensor } of this.state()) {
      scope(() => {
        const saved = read(name);
        if (saved === undefined) throw new CheckpointError(file, `optimizer state ${name} is missing`);
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
    for (const { weight, grad, state } of this.#slots) {
      weight.setGrad(null);
      grad.free();
      for (const [, tensor] of state) tensor.free();
    }
    this.#moments[Symbol.dispose]();
    this.#grad.free();
    this.#low?.free();
  }
}
