/** Lifetimes: a scope frees what was made inside it, except what it returns. */
import { InvariantError } from "../errors.ts";
import { addon, io } from "./addon.ts";
import { setCollector, Tensor } from "./tensor.ts";

let current: Tensor[] | null = null;

function enter(list: Tensor[] | null): void {
  current = list;
  setCollector(list === null ? null : (tensor) => void list.push(tensor));
}

/**
 * Runs `fn` and frees every tensor made inside, except those in what it returns (tensors, arrays, Maps, Sets, plain objects, class
 * instances with tensors in their own fields) and those given to keep(). Returned tensors move to the enclosing scope. When `fn`
 * throws, everything is freed.
 *
 * ```ts
 * const norm = scope(() => sqrt(sum(square(x)))); // the square and the sum are gone, the norm is the caller's
 * ```
 * @throws InvariantError when `fn` returns a promise: what runs after an await is in nobody's scope
 */
export function scope<T>(fn: () => T): T {
  const outer = current;
  const made: Tensor[] = [];
  enter(made);
  let result: T;
  try {
    result = fn();
    if (typeof (result as { then?: unknown } | null)?.then === "function") {
      throw new InvariantError("scope() was given an async function; tensors made after an await would be in no scope");
    }
  } catch (error) {
    enter(outer);
    freeAll(made);
    throw error;
  }
  enter(outer);
  const returned = new Set<Tensor>();
  collectTensors(result, returned, new Set());
  if (returned.size === 0) {
    freeAll(made);
  } else {
    freeAll(made.filter((tensor) => !returned.has(tensor)));
    if (outer !== null) for (const tensor of made) if (returned.has(tensor)) outer.push(tensor);
  }
  return result;
}

/** Takes a tensor out of all scopes: from now on its owner frees it. */
export function keep<T extends Tensor>(tensor: T): T {
  tensor.markKept();
  return tensor;
}

/** Live tensor handles of the process, and the bytes of the distinct memory blocks behind them. */
export function liveTensors(): { count: number; bytes: number } {
  addon.liveTensors();
  return { count: io[0]!, bytes: io[1]! };
}

function freeAll(tensors: readonly Tensor[]): void {
  let pending = 0;
  for (const tensor of tensors) {
    if (tensor.isFreed || tensor.isKept) continue;
    tensor.markFreed();
    io[pending++] = tensor.handle;
    if (pending === io.length) {
      addon.tensorFree(pending);
      pending = 0;
    }
  }
  if (pending > 0) addon.tensorFree(pending);
}

function collectTensors(value: unknown, found: Set<Tensor>, seen: Set<object>): void {
  if (typeof value !== "object" || value === null) return;
  if (value instanceof Tensor) {
    found.add(value);
    return;
  }
  if (ArrayBuffer.isView(value) || seen.has(value)) return;
  seen.add(value);
  if (Array.isArray(value) || value instanceof Set) {
    for (const item of value) collectTensors(item, found, seen);
  } else if (value instanceof Map) {
    for (const [key, item] of value) {
      collectTensors(key, found, seen);
      collectTensors(item, found, seen);
    }
  } else {
    for (const item of Object.values(value)) collectTensors(item, found, seen);
  }
}
