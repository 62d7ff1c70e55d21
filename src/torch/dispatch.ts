/**
 * Any ATen or custom operator by its dispatcher name: `op("aten::add.Tensor")(x, y)`. The schema is read once, on the first call;
 * arguments are checked and written into the exchange buffer by its kinds (the layout stands in native/dispatch.cc).
 */
import { type GroveError, NativeError } from "../errors.ts";
import { addon, io, type OpParameter, type OpPlan } from "./addon.ts";
import { type Device, type DType, deviceCode, dtypeCode } from "./dtype.ts";
import { typedError } from "./native-error.ts";
import type { Generator } from "./random.ts";
import { Tensor } from "./tensor.ts";

/** undefined stands for the schema's default, null for None. */
export type OpArg =
  | Tensor
  | Generator
  | number
  | bigint
  | boolean
  | string
  | null
  | undefined
  | ArrayLike<number>
  | readonly boolean[]
  | readonly (Tensor | null)[];

/** In the order of `enum Kind` in native/dispatch.cc. */
const KIND_NAMES = [
  "a Tensor",
  "a number or boolean",
  "an integer",
  "a number",
  "a boolean",
  "a string",
  "a dtype",
  "a device",
  "a Generator",
  "an array of Tensors",
  "an array of Tensors or nulls",
  "an array of integers",
  "an array of numbers",
  "an array of booleans",
  "(a kind that JavaScript cannot pass)",
] as const;
const TENSOR = 0;
const SCALAR = 1;
const INT = 2;
const FLOAT = 3;
const BOOL = 4;
const STRING = 5;
const SCALAR_TYPE = 6;
const DEVICE = 7;
const GENERATOR = 8;
const TENSOR_LIST = 9;
const OPTIONAL_TENSOR_LIST = 10;
const INT_LIST = 11;
const FLOAT_LIST = 12;
const BOOL_LIST = 13;

/** Tags before each argument. */
const DEFAULT = 0;
const NONE = 1;
const VALUE = 2;

/**
 * An operator that returns one tensor. In-place operators return their first argument itself.
 * The returned function throws NativeError (with operator and argument shapes), ShapeError, DTypeError or UseAfterFreeError.
 */
export function op(name: string): (...args: OpArg[]) => Tensor {
  let plan: OpPlan | null = null;
  return (...args) => {
    if (plan === null) plan = resolve(name);
    run(name, plan, args);
    const result = plan.results[0];
    if (result === undefined) return undefined as unknown as Tensor; // the schema returns ()
    if (result.alias >= 0) return args[result.alias] as Tensor;
    return new Tensor(io[0]!);
  };
}

/**
 * An operator with several results, or with a list. Tensors come as Tensors, an undefined one as null, numbers and booleans as
 * numbers, lists flattened in place; the type says Tensor[] because that is what nearly all of them are.
 */
export function opN(name: string): (...args: OpArg[]) => Tensor[] {
  let plan: OpPlan | null = null;
  return (...args) => {
    if (plan === null) plan = resolve(name);
    run(name, plan, args);
    return readResults(plan, args);
  };
}

/** The schema of a registered operator, e.g. for tests. @throws NativeError when there is none */
export function schemaOf(name: string): string {
  return resolve(name).schema;
}

function resolve(name: string): OpPlan {
  try {
    return addon.resolveOp(name);
  } catch (cause) {
    throw new NativeError(name, "", cause);
  }
}

function run(name: string, plan: OpPlan, args: readonly OpArg[]): void {
  const { parameters } = plan;
  if (args.length > parameters.length) {
    const expected = `expected at most ${parameters.length} arguments, got ${args.length}; schema: ${plan.schema}`;
    throw new NativeError(name, describe(args), expected);
  }
  io[0] = plan.index;
  io[1] = args.length;
  let at = 2;
  for (let i = 0; i < args.length; i++) {
    const arg = args[i];
    if (arg === undefined) io[at++] = DEFAULT;
    else if (arg === null) io[at++] = NONE;
    else {
      io[at++] = VALUE;
      const parameter = parameters[i]!;
      // The common case, a tensor, is settled here.
      if (parameter.kind === TENSOR && arg instanceof Tensor) io[at++] = arg.handle;
      else at = encode(at, arg, parameter, name, plan, args);
    }
  }
  try {
    addon.callOp();
  } catch (cause) {
    throw callError(name, plan, args, cause);
  }
}

/** Writes one argument's value from io[at] on; returns the place after it. */
function encode(
  at: number,
  arg: NonNullable<OpArg>,
  parameter: OpParameter,
  name: string,
  plan: OpPlan,
  args: readonly OpArg[],
): number {
  switch (parameter.kind) {
    case SCALAR:
      if (typeof arg === "number" || typeof arg === "bigint") {
        const value = Number(arg);
        io[at] = Number.isSafeInteger(value) ? 0 : 1;
        io[at + 1] = value;
        return at + 2;
      }
      if (typeof arg !== "boolean") break;
      io[at] = 2;
      io[at + 1] = arg ? 1 : 0;
      return at + 2;
    case INT:
    case FLOAT:
      if (typeof arg !== "number" && typeof arg !== "bigint") break;
      if (parameter.kind === INT && !Number.isInteger(Number(arg))) break;
      io[at] = Number(arg);
      return at + 1;
    case BOOL:
      if (typeof arg !== "boolean") break;
      io[at] = arg ? 1 : 0;
      return at + 1;
    case STRING:
      if (typeof arg === "string")
        return encodeList(
          at,
          Array.from(arg, (unit) => unit.charCodeAt(0)),
        );
      break;
    case SCALAR_TYPE:
      if (typeof arg !== "string") break;
      io[at] = dtypeCode(arg as DType);
      return at + 1;
    case DEVICE:
      if (typeof arg !== "string") break;
      io[at] = deviceCode(arg as Device);
      return at + 1;
    case GENERATOR:
      if (typeof arg !== "object" || !("generatorHandle" in arg)) break;
      io[at] = arg.generatorHandle;
      return at + 1;
    case INT_LIST:
      if (typeof arg === "number" && parameter.length > 0) {
        return encodeList(at, new Array<number>(parameter.length).fill(arg));
      }
      if (isArrayOf(arg, Number.isInteger)) return encodeList(at, arg as ArrayLike<number>);
      break;
    case FLOAT_LIST:
      if (isArrayOf(arg, (item) => typeof item === "number")) return encodeList(at, arg as ArrayLike<number>);
      break;
    case BOOL_LIST:
      if (!isArrayOf(arg, (item) => typeof item === "boolean")) break;
      return encodeList(at, Array.from(arg as readonly boolean[], Number));
    case TENSOR_LIST:
    case OPTIONAL_TENSOR_LIST: {
      const nullable = parameter.kind === OPTIONAL_TENSOR_LIST;
      if (!isArrayOf(arg, (item) => item instanceof Tensor || (nullable && item === null))) break;
      return encodeList(
        at,
        Array.from(arg as readonly (Tensor | null)[], (tensor) => tensor?.handle ?? 0),
      );
    }
    default:
      break;
  }
  const got =
    arg instanceof Tensor
      ? "a Tensor"
      : Array.isArray(arg)
        ? "an array of something else"
        : `${typeof arg} ${String(arg)}`;
  const problem = `argument "${parameter.name}" must be ${KIND_NAMES[parameter.kind]}, got ${got}; schema: ${plan.schema}`;
  throw new NativeError(name, describe(args), problem);
}

function encodeList(at: number, values: ArrayLike<number>): number {
  if (at + values.length + 1 > io.length) {
    throw new NativeError(
      "dispatch",
      `a list of ${values.length}`,
      `all arguments of a call must fit into ${io.length} numbers`,
    );
  }
  io[at++] = values.length;
  for (let i = 0; i < values.length; i++) io[at++] = values[i]!;
  return at;
}

function isArrayOf(value: unknown, check: (item: unknown) => boolean): boolean {
  if (!Array.isArray(value)) return ArrayBuffer.isView(value) && !(value instanceof DataView);
  for (const item of value) if (!check(item)) return false;
  return true;
}

function readResults(plan: OpPlan, args: readonly OpArg[]): Tensor[] {
  // Handles are copied out first: `new Tensor` may not touch io, but nothing should have to rely on that.
  const numbers: { value: number; kind: number; alias: number }[] = [];
  let at = 0;
  for (const { kind, alias } of plan.results) {
    const isList = kind === TENSOR_LIST || kind === INT_LIST;
    const count = isList ? io[at++]! : 1;
    const element = kind === TENSOR_LIST ? TENSOR : kind;
    for (let i = 0; i < count; i++) numbers.push({ value: io[at++]!, kind: element, alias });
  }
  return numbers.map(({ value, kind, alias }) => {
    if (alias >= 0) return args[alias] as Tensor;
    if (kind !== TENSOR) return value as unknown as Tensor;
    return value === 0 ? (null as unknown as Tensor) : new Tensor(value);
  });
}

function callError(name: string, plan: OpPlan, args: readonly OpArg[], cause: unknown): GroveError {
  const text = describe(args);
  const first = args.find((arg) => arg instanceof Tensor && addon.tensorIsLive(arg.handle)) as Tensor | undefined;
  const { code, message } = cause as { code?: string; message?: string };
  if (code === "ARG_COUNT" || code === "ARG_KIND")
    return new NativeError(name, text, `${message}; schema: ${plan.schema}`);
  return typedError(name, text, first?.shape ?? [], cause);
}

/** Arguments in short: tensors as "[2, 3] float32", other values as they are. */
function describe(args: readonly OpArg[]): string {
  return args.map(describeOne).join(", ");
}

function describeOne(arg: OpArg): string {
  if (arg instanceof Tensor) return addon.tensorIsLive(arg.handle) ? arg.toString() : `Tensor #${arg.handle} (freed)`;
  if (Array.isArray(arg)) {
    const shown = arg.slice(0, 8).map((item) => describeOne(item as OpArg));
    return `[${shown.join(", ")}${arg.length > 8 ? `, ... ${arg.length}` : ""}]`;
  }
  if (typeof arg === "object" && arg !== null) return "generatorHandle" in arg ? "generator" : `array of ${arg.length}`;
  return typeof arg === "string" ? `"${arg}"` : String(arg);
}
