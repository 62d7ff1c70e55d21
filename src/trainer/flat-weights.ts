/** Weights of all parameters in one flat buffer, so that what each rank has updated reaches the others in one collective. */

import type { Parameter } from "../model/parameter.ts";
import { op } from "../torch/dispatch.ts";
import { copy_, reshape, slice, zeros } from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";

const set_ = op("aten::set_.source_Tensor"); // makes a tensor a view of another one's memory

/**
 * Moves the weights into one new buffer of `size` elements: parameter i is then a view of it, from element `starts[i]` on. Their handles
 * stay; what else was a view of their old memory is none of theirs any more. For a moment the device holds the weights twice.
 */
export function flattenWeights(parameters: readonly Parameter[], starts: readonly number[], size: number): Tensor {
  const { dtype, device } = (parameters[0] as Parameter).tensor;
  const flat = keep(zeros([size], { dtype, device }));
  for (const [i, { tensor }] of parameters.entries()) {
    scope(() => {
      const start = starts[i] as number;
      const place = reshape(slice(flat, 0, start, start + tensor.numel), tensor.shape);
      copy_(place, tensor);
      set_(tensor, place);
    });
  }
  return flat;
}
