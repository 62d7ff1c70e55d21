/**
 * Autograd inside a layer. Grad mode is off unless enableGrad is running; graphs span one layer, and the loop over layers is written
 * by hand, so backward never crosses a layer.
 */
import { InvariantError } from "../errors.ts";
import { addon, io } from "./addon.ts";
import { typedError } from "./native-error.ts";
import { Tensor } from "./tensor.ts";

/** Runs `fn` without recording; the default state. */
export function noGrad<T>(fn: () => T): T {
  return withGradMode(false, fn);
}

/** Runs `fn` with recording on: results of tensors that require grad can be given to backward or grad. @throws InvariantError for a promise */
export function enableGrad<T>(fn: () => T): T {
  return withGradMode(true, fn);
}

function withGradMode<T>(enabled: boolean, fn: () => T): T {
  const before = addon.setGradMode(enabled);
  try {
    const result = fn();
    if (typeof (result as { then?: unknown } | null)?.then === "function") {
      throw new InvariantError("grad mode cannot be set around an async function");
    }
    return result;
  } finally {
    addon.setGradMode(before);
  }
}

/**
 * Adds the gradients of sum_i <outputs[i], gradOutputs[i]> into `.grad` of every leaf that requires grad; in place where `.grad` was set.
 * null stands for 1 and needs a one-element output. The graph is freed unless retainGraph is set.
 * @throws ShapeError when a gradient does not have its output's shape; NativeError when an output records no graph
 */
export function backward(
  outputs: readonly Tensor[],
  gradOutputs: readonly (Tensor | null)[],
  options: { retainGraph?: boolean } = {},
): void {
  writePairs("backward", outputs, gradOutputs);
  try {
    addon.runBackward(outputs.length, options.retainGraph ?? false);
  } catch (cause) {
    throw typedError("backward", outputs.map(String).join(", "), outputs[0]?.shape ?? [], cause);
  }
}

/**
 * The gradients of sum_i <outputs[i], gradOutputs[i]> with respect to `inputs`, without touching any `.grad`.
 * With allowUnused an input that the outputs do not depend on gives null; else it is an error.
 */
export function grad(
  outputs: readonly Tensor[],
  inputs: readonly Tensor[],
  gradOutputs: readonly (Tensor | null)[],
  options: { allowUnused?: boolean; retainGraph?: boolean } = {},
): (Tensor | null)[] {
  const at = writePairs("grad", outputs, gradOutputs);
  inputs.forEach((tensor, i) => {
    io[at + i] = tensor.handle;
  });
  try {
    addon.runGrad(outputs.length, inputs.length, options.retainGraph ?? false, options.allowUnused ?? false);
  } catch (cause) {
    throw typedError("grad", outputs.map(String).join(", "), outputs[0]?.shape ?? [], cause);
  }
  const handles = Array.from(io.subarray(0, inputs.length));
  return handles.map((handle) => (handle === 0 ? null : new Tensor(handle)));
}

/** Writes [...outputs, ...gradients] into io; returns the place after them. */
function writePairs(what: string, outputs: readonly Tensor[], gradients: readonly (Tensor | null)[]): number {
  if (outputs.length !== gradients.length) {
    throw new InvariantError(`${what}: ${outputs.length} outputs with ${gradients.length} gradients`);
  }
  for (let i = 0; i < outputs.length; i++) {
    io[i] = outputs[i]!.handle;
    io[outputs.length + i] = gradients[i]?.handle ?? 0;
  }
  return 2 * outputs.length;
}
