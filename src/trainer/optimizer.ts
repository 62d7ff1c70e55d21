/**
 * AdamW with a float32 master. A bfloat16 weight keeps the 16 bits it lacks beside it: weight and low bits together are an exact float32
 * number, so an update of 1e-6 is not lost to rounding and costs no second copy of the weights.
 *
 * Gradients of all parameters are views of one flat buffer: cleared by one call, measured by one call. Moments and low bits lie flat
 * too; a parameter's own tensors are views, so its update is one fused kernel call.
 */

import type { Config } from "../config/schema.ts";
import { CheckpointError } from "../errors.ts";
import type { Parameter } from "../model/parameter.ts";
import { op } from "../torch/dispatch.ts";
import { add, clamp, copy_, mul, norm, reciprocal, reshape, slice, zero_, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { DType, Tensor } from "../torch/tensor.ts";
import { flatLayout } from "./flat-layout.ts";

const adamw = op("grove::adamw_");

interface Slot {
  name: string;
  weight: Tensor;
  grad: Tensor;
  m: Tensor;
  v: Tensor;
  low: Tensor | null; // int16, for a bfloat16 weight
  decay: boolean;
}

export class AdamW implements Disposable {
  readonly #config: Config["optimizer"];
  readonly #slots: Slot[];
  readonly #buffers: Record<"grad" | "m" | "v", Tensor> & { low: Tensor | null };
  #updates = 0;

  /** Takes over the gradients of the parameters: from now on `tensor.grad` of each is a view of the optimizer's buffer. */
  constructor(parameters: readonly Parameter[], config: Config["optimizer"]) {
    this.#config = config;
    const { device, dtype } = (parameters[0] as Parameter).tensor;
    const { starts, size } = flatLayout(parameters.map(({ tensor }) => tensor.numel));
    const flat = (kind: DType) => keep(zeros([size], { dtype: kind, device }));
    this.#buffers = {
      grad: flat(dtype),
      m: flat("float32"),
      v: flat("float32"),
      low: dtype === "bfloat16" ? flat("int16") : null,
    };
    this.#slots = parameters.map(({ name, tensor }, i) => {
      const start = starts[i] as number;
      const view = (buffer: Tensor) =>
        keep(scope(() => reshape(slice(buffer, 0, start, start + tensor.numel), tensor.shape)));
      const { grad, m, v, low } = this.#buffers;
      const slot: Slot = {
        name,
        weight: tensor,
        grad: view(grad),
        m: view(m),
        v: view(v),
        low: low && view(low),
        decay: tensor.ndim >= 2,
      };
      tensor.setRequiresGrad(true);
      tensor.setGrad(slot.grad);
      return slot;
    });
  }

  /** Updates made so far, over all sessions of a run. */
  get updates(): number {
    return this.#updates;
  }

  zeroGrad(): void {
    zero_(this.#buffers.grad);
  }

  /** Global norm of all gradients: a float32 scalar on the device, owned by the caller. */
  gradNorm(): Tensor {
    return norm(this.#buffers.grad, undefined, false, "float32");
  }

  /**
   * One update. `gradNorm` is what gradNorm() returned: gradients are scaled by min(1, maxGradNorm / (norm + 1e-6)) as torch's
   * clip_grad_norm_ does it, on the device. The caller has checked that it is finite.
   */
  step(learningRate: number, gradNorm: Tensor): void {
    const { beta1, beta2, eps, weightDecay, maxGradNorm } = this.#config;
    this.#updates++;
    scope(() => {
      const scale = clamp(mul(reciprocal(add(gradNorm, 1e-6)), maxGradNorm), null, 1);
      for (const { weight, grad, low, m, v, decay } of this.#slots) {
        const rate = decay ? weightDecay : 0;
        adamw(weight, grad, low, m, v, scale, learningRate, beta1, beta2, eps, rate, this.#updates);
      }
    });
  }

  /** What a checkpoint keeps: moments and low bits by `<parameter>.<kind>`. The tensors stay the optimizer's. */
  state(): { name: string; tensor: Tensor }[] {
    return this.#slots.flatMap(({ name, m, v, low }) => [
      { name: `${name}.m`, tensor: m },
      { name: `${name}.v`, tensor: v },
      ...(low === null ? [] : [{ name: `${name}.low`, tensor: low }]),
    ]);
  }

  /**
   * Takes up a saved state. `read` gives the tensor of a name, or undefined.
   * @throws CheckpointError naming the first tensor that is missing or has another shape.
   */
  restore(updates: number, read: (name: string) => Tensor | undefined, file: string): void {
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

  [Symbol.dispose](): void {
    for (const { weight, grad, m, v, low } of this.#slots) {
      weight.setGrad(null);
      for (const tensor of [grad, m, v, low]) tensor?.free();
    }
    for (const buffer of Object.values(this.#buffers)) buffer?.free();
  }
}
