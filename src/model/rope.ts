/**
 * Rotary position embedding over several position axes: every rotary frequency turns with one axis. The language model's M-RoPE has
 * the axes (t, h, w) (Qwen2-VL, arXiv:2409.12191 section 2.1); the vision tower's 2-D rotary has (h, w).
 *
 * Shapes: T tokens, A axes, D head size, F = D / 2 frequencies.
 */

import { noGrad } from "../torch/autograd.ts";
import { op, opN } from "../torch/dispatch.ts";
import { arange, cast, cat, div, reciprocal, to } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { type Device, type DType, fromArray, type Tensor } from "../torch/tensor.ts";

/** Rotation of T tokens, [T, 1, D] each. The first half of `sin` is negated, which is what rotate() wants. */
export interface RopeTable {
  cos: Tensor;
  sin: Tensor;
}

const ropeTable = opN("grove::rope_table");
const rotateHeads = op("grove::rotate");
const rotateCutHeads = opN("grove::rotate_cut");
const powScalar = op("aten::pow.Scalar");

/** The frequencies of one model part, and the axis that each of them follows. */
export class Rope implements Disposable {
  readonly #frequencies_F: Tensor; // float32
  readonly #axes_F: Tensor; // int64
  readonly #device: Device;
  readonly #axisCount: number;

  /** `sections[i]` frequencies follow axis i; `restart` gives every axis its own full range of frequencies, as the vision tower has it. */
  constructor(options: { sections: readonly number[]; theta: number; restart: boolean; device: Device }) {
    const { sections, theta, restart, device } = options;
    this.#device = device;
    this.#axisCount = sections.length;
    const axes = sections.flatMap((count, axis) => Array<number>(count).fill(axis));
    const total = restart ? (sections[0] as number) : axes.length;
    const [frequencies, axesTensor] = scope(() => {
      // float32 throughout and in this order: transformers' frequencies to the last bit
      const exponents = div(arange(0, total, { dtype: "float32" }), total); // 2j / (2 total)
      const one = reciprocal(powScalar(theta, exponents));
      const all = restart
        ? cat(
            sections.map(() => one),
            0,
          )
        : one;
      return [to(all, { device }), fromArray(axes, [axes.length], { dtype: "int64", device })] as const;
    });
    this.#frequencies_F = keep(frequencies);
    this.#axes_F = keep(axesTensor);
  }

  /** Positions [A, T], any integer type, on any device; or the same as a flat array, axis by axis. The table belongs to the caller. */
  table(positions: Tensor | Int32Array, dtype: DType): RopeTable {
    return scope(() =>
      noGrad(() => {
        const where = { dtype: "int64", device: this.#device } as const;
        const onDevice =
          positions instanceof Int32Array
            ? fromArray(positions, [this.#axisCount, positions.length / this.#axisCount], where)
            : to(positions, where);
        const frequencies = dtype === "float64" ? cast(this.#frequencies_F, "float64") : this.#frequencies_F;
        const [cos, sin] = ropeTable(onDevice, this.#axes_F, frequencies, dtype) as [Tensor, Tensor];
        return { cos, sin };
      }),
    );
  }

  [Symbol.dispose](): void {
    this.#frequencies_F.free();
    this.#axes_F.free();
  }
}

/**
 * Rotates every head of x [T, N, D]: (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of a head.
 * Done in the table's dtype, returned in x's (native/pointwise.cc).
 */
export function rotate(x: Tensor, table: RopeTable): Tensor {
  return rotateHeads(x, table.cos, table.sin);
}

/**
 * qkv [T, H + 2 K, D] cut into q [T, H, D] and k [T, K, D], rotated, and v [T, K, D]. `ownValues`: v as a copy, which does not keep all of qkv alive.
 */
export function rotateCut(
  qkv: Tensor,
  table: RopeTable,
  kvHeads: number,
  ownValues: boolean,
): [Tensor, Tensor, Tensor] {
  return rotateCutHeads(qkv, table.cos, table.sin, kvHeads, ownValues) as [Tensor, Tensor, Tensor];
}
