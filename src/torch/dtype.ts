/** Element types and devices, and the numbers libtorch knows them by. */
import { AddonError, DTypeError, NativeError } from "../errors.ts";
import { addon } from "./addon.ts";

export type DType = "float32" | "float64" | "bfloat16" | "float16" | "int64" | "int32" | "int16" | "uint8" | "bool";

/** "cuda" is the current CUDA device. */
export type Device = "cpu" | "cuda" | `cuda:${number}`;

/** c10::ScalarType (c10/core/ScalarType.h); stable across versions. */
const CODES: Record<DType, number> = {
  uint8: 0,
  int16: 2,
  int32: 3,
  int64: 4,
  float16: 5,
  float32: 6,
  float64: 7,
  bool: 11,
  bfloat16: 15,
};

const NAMES = new Map(Object.entries(CODES).map(([name, code]) => [code, name as DType]));

const BYTES: Record<DType, number> = {
  uint8: 1,
  bool: 1,
  int16: 2,
  float16: 2,
  bfloat16: 2,
  int32: 4,
  float32: 4,
  int64: 8,
  float64: 8,
};

/** @throws DTypeError for a string that names no dtype */
export function dtypeCode(dtype: DType): number {
  const code = CODES[dtype];
  if (code === undefined) throw new DTypeError("dtype", `one of ${Object.keys(CODES).join(", ")}`, String(dtype));
  return code;
}

export function dtypeName(code: number): DType {
  const name = NAMES.get(code);
  if (name === undefined) throw new DTypeError("dtype", `one of ${Object.keys(CODES).join(", ")}`, `c10 type ${code}`);
  return name;
}

/** Bytes an element takes. */
export function itemSize(dtype: DType): number {
  return BYTES[dtype];
}

/**
 * 0 CPU, 1 current CUDA device, 2 + k CUDA device k (native/tensor.h).
 * @throws NativeError for another string, AddonError for CUDA where there is none: libtorch's own words would not help anybody
 */
export function deviceCode(device: Device): number {
  if (device === "cpu") return 0;
  const match = /^cuda(?::(\d{1,2}))?$/.exec(device);
  if (match === null) throw new NativeError("device", `"${device}"`, 'expected "cpu", "cuda" or "cuda:<index>"');
  hasCuda ??= addon.cudaAvailable();
  if (!hasCuda) throw new AddonError(`device ${device} cannot be used: ${whyNoCuda()}`);
  return match[1] === undefined ? 1 : 2 + Number(match[1]);
}

let hasCuda: boolean | null = null;

function whyNoCuda(): string {
  const { torch, cudaBuild } = addon.versions();
  return cudaBuild ? "no NVIDIA GPU with a working driver was found" : `libtorch ${torch} is a build without CUDA`;
}

export function deviceName(code: number): Device {
  return code === 0 ? "cpu" : code === 1 ? "cuda" : `cuda:${code - 2}`;
}
