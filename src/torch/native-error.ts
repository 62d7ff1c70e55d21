/** Turns what the addon throws ({ code, message }) into the typed errors of src/errors.ts, with the operation and its arguments. */
import { CollectiveError, DTypeError, type GroveError, NativeError, ShapeError, UseAfterFreeError } from "../errors.ts";

/** Phrases by which libtorch reports sizes that do not fit, and element types that do not. */
const SHAPE =
  /must match (the size|the existing size|except in dimension)|shapes? cannot be multiplied|is invalid for input of size|size mismatch|sizes of tensors must match|must have the same (size|shape)|out of range|not broadcastable|shape mismatch|expected .{0,40}(shape|dimension|\d-?D )|stack expects each tensor to be equal size|split_with_sizes expects|the tensor's own shape|expanded size/i;
const DTYPE =
  /\bdtypes?\b|scalar ?type|not implemented for '|can't be cast|expected .{0,60}(Float|Double|BFloat16|Half|Long|Int|Bool|Byte)\b/;

/**
 * @param op what was being done, e.g. "aten::mm"
 * @param args the arguments in short, e.g. "[2, 3] float32, [4, 5] float32"
 * @param shape of the first tensor argument
 */
export function typedError(op: string, args: string, shape: readonly number[], cause: unknown): GroveError {
  const { code, message } = cause as { code?: string; message?: string };
  if (code === "FREED") return new UseAfterFreeError(op, Number(message));
  if (code === "COLLECTIVE" && message !== undefined) return new CollectiveError(message, { op, args }, cause);
  // An exception's first sentence is its point; what follows tells of dispatch keys and call sites.
  if (code === "OP" && message !== undefined) {
    if (SHAPE.test(message)) return new ShapeError(op, `shapes that fit (${message})`, shape, args, cause);
    if (DTYPE.test(message)) return new DTypeError(op, `dtypes that fit (${message})`, args, cause);
  }
  return new NativeError(op, args, cause);
}
