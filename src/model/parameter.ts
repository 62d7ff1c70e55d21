/** A trainable tensor and the Hugging Face tensors it is made of. */

import type { Tensor } from "../torch/tensor.ts";

/** Rows [begin, end) of a parameter's first dimension, stored in checkpoints under `name` with shape `shape`. */
export interface ParameterPart {
  name: string; // in Qwen2-VL's original layout
  rows: [begin: number, end: number];
  shape: number[];
}

/** What a parameter looks like before it has memory. */
export interface ParameterSpec {
  name: string;
  shape: number[];
  parts: ParameterPart[];
  /** Random initialisation: normal with this standard deviation, or a constant. */
  init: { std: number } | { constant: number };
}

export interface Parameter {
  readonly name: string;
  /** Where training wants gradients, a leaf: they accumulate in place into `tensor.grad`. */
  readonly tensor: Tensor;
  readonly parts: readonly ParameterPart[];
}

/** A parameter stored under its own name, possibly in another shape of the same elements. */
export function plainSpec(
  name: string,
  shape: number[],
  init: ParameterSpec["init"],
  storedShape = shape,
): ParameterSpec {
  return { name, shape, init, parts: [{ name, rows: [0, shape[0] as number], shape: storedShape }] };
}

/** Several stored tensors with equal trailing dimensions, fused row-wise so that one matrix product serves them all. */
export function fusedSpec(
  name: string,
  parts: [name: string, rows: number][],
  columns: number[],
  init: ParameterSpec["init"],
): ParameterSpec {
  let row = 0;
  const placed = parts.map(([part, rows]): ParameterPart => {
    const begin = row;
    row += rows;
    return { name: part, rows: [begin, row], shape: [rows, ...columns] };
  });
  return { name, shape: [row, ...columns], init, parts: placed };
}
