/**
 * Tensor: a handle of a libtorch tensor. Never freed by the garbage collector: by the scope it was made in, `using`, or free().
 * Metadata is read from C++ once and cached; item, toArray and toNumbers wait for the device, nothing else does.
 */
import { DTypeError, GroveError, ShapeError } from "../errors.ts";
import { addon, io } from "./addon.ts";
import { type Device, type DType, deviceCode, deviceName, dtypeCode, dtypeName, itemSize } from "./dtype.ts";
import { typedError } from "./native-error.ts";

export type { Device, DType } from "./dtype.ts";

export type NumberArray = Float32Array | Float64Array | BigInt64Array | Int32Array | Int16Array | Uint8Array;

/** Receives each tensor that is made; scope.ts sets it. */
type Collector = (tensor: Tensor) => void;
let collect: Collector | null = null;

/** For scope.ts: who is told about new tensors; null outside every scope. */
export function setCollector(collector: Collector | null): void {
  collect = collector;
}

export class Tensor implements Disposable {
  readonly handle: number;
  #freed = false;
  #kept = false;
  #shape: number[] | null = null;
  #dtype: DType = "float32";
  #device: Device = "cpu";

  /** Takes over a handle that C++ made; everybody else uses ops or fromArray. */
  constructor(handle: number) {
    this.handle = handle;
    if (collect !== null) collect(this);
  }

  get shape(): number[] {
    return this.#shape ?? this.#readMeta();
  }

  get dtype(): DType {
    if (this.#shape === null) this.#readMeta();
    return this.#dtype;
  }

  get device(): Device {
    if (this.#shape === null) this.#readMeta();
    return this.#device;
  }

  get ndim(): number {
    return this.shape.length;
  }

  get numel(): number {
    let count = 1;
    for (const size of this.shape) count *= size;
    return count;
  }

  /** Bytes of the elements; a view counts its own elements only. */
  get nbytes(): number {
    return this.numel * itemSize(this.dtype);
  }

  /** Size of a dimension; negative ones count from the end. @throws ShapeError when there is no such dimension */
  size(dim: number): number {
    const shape = this.shape;
    const size = shape[dim < 0 ? dim + shape.length : dim];
    if (size === undefined) throw new ShapeError("size", `a tensor with dimension ${dim}`, shape);
    return size;
  }

  /** The value of a one-element tensor. Waits for the device. int64 beyond 2^53 is rounded. */
  item(): number {
    return guard("item", this, () => addon.tensorItem(this.handle));
  }

  /** All elements, row-major. Waits for the device. bfloat16 and float16 come as Float32Array, bool as Uint8Array of 0 and 1. */
  toArray(): NumberArray {
    const [array, dtype] = emptyArray(this.dtype, this.numel);
    guard("toArray", this, () => addon.tensorRead(this.handle, array, dtypeCode(dtype)));
    return array;
  }

  /** All elements as plain numbers, row-major. Waits for the device. int64 beyond 2^53 is rounded. */
  toNumbers(): number[] {
    return Array.from<number | bigint, number>(this.toArray() as ArrayLike<number | bigint>, Number);
  }

  get requiresGrad(): boolean {
    guard("requiresGrad", this, () => addon.tensorMeta(this.handle));
    return io[2] === 1;
  }

  setRequiresGrad(requires: boolean): this {
    guard("setRequiresGrad", this, () => addon.setRequiresGrad(this.handle, requires));
    return this;
  }

  /** A new handle of the accumulated gradient (same memory), or null. Belongs to the current scope. */
  get grad(): Tensor | null {
    const handle = guard("grad", this, () => addon.getGrad(this.handle));
    return handle === 0 ? null : new Tensor(handle);
  }

  /** Makes backward add into `grad`'s memory (e.g. a view of a flat buffer), or drops the gradient. @throws ShapeError */
  setGrad(grad: Tensor | null): void {
    guard("setGrad", this, () => addon.setGrad(this.handle, grad === null ? 0 : grad.handle));
  }

  get isFreed(): boolean {
    return this.#freed;
  }

  /** Gives up this handle. The memory goes when no other handle, view or autograd graph uses it. Twice does nothing. */
  free(): void {
    if (this.#freed) return;
    this.#freed = true;
    io[0] = this.handle;
    addon.tensorFree(1);
  }

  [Symbol.dispose](): void {
    this.free();
  }

  /** For scope.ts: whether a scope's end must pass this tensor over. */
  get isKept(): boolean {
    return this.#kept;
  }

  /** For scope.ts, by keep(). */
  markKept(): void {
    this.#kept = true;
  }

  /** For scope.ts: notes that the handle was freed together with others. */
  markFreed(): void {
    this.#freed = true;
  }

  toString(): string {
    return this.#freed ? `Tensor #${this.handle} (freed)` : `[${this.shape.join(", ")}] ${this.dtype}`;
  }

  #readMeta(): number[] {
    guard("shape", this, () => addon.tensorMeta(this.handle));
    this.#dtype = dtypeName(io[0]!);
    this.#device = deviceName(io[1]!);
    this.#shape = Array.from(io.subarray(4, 4 + io[3]!));
    return this.#shape;
  }
}

export interface FromArrayOptions {
  /** Default: the array's own type; float32 for a plain array of numbers. */
  dtype?: DType;
  device?: Device; // default "cpu"
  /** A host tensor in page-locked memory, which a CUDA device copies from or to while the host goes on. Ignored in a build without CUDA. */
  pinned?: boolean;
}

/**
 * A new tensor with a copy of `data`, row-major. The host does not wait for its copy to a CUDA device.
 * @throws ShapeError when the shape does not hold as many elements as `data`
 */
export function fromArray(
  data: NumberArray | Int8Array | Uint16Array | Uint32Array | readonly number[],
  shape: readonly number[],
  options: FromArrayOptions = {},
): Tensor {
  const numel = shape.reduce((product, size) => product * size, 1);
  if (numel !== data.length) throw new ShapeError("fromArray", `a shape of ${data.length} elements`, shape);
  let source = sourceDType(data);
  let array = data as NumberArray;
  if (source === null) {
    // Doubles hold every number exactly; C++ converts to the dtype asked for.
    source = "float64";
    array = Float64Array.from(data as ArrayLike<number>);
  }
  const dtype = options.dtype ?? (sourceDType(data) === null ? "float32" : source);
  const { device = "cpu", pinned = false } = options;
  const page = pinned && addon.cudaAvailable();
  for (let i = 0; i < shape.length; i++) io[i] = shape[i]!;
  try {
    const sourceCode = dtypeCode(source);
    return new Tensor(
      addon.tensorFromArray(array, sourceCode, shape.length, dtypeCode(dtype), deviceCode(device), page),
    );
  } catch (cause) {
    if (cause instanceof GroveError) throw cause;
    throw typedError("fromArray", `${source}[${data.length}], [${shape.join(", ")}]`, shape, cause);
  }
}

/** Bytes of a file that go into a tensor as they are. */
export interface FileRead {
  file: MappedFile;
  byteOffset: number;
  /** Contiguous, e.g. some rows of a larger tensor; takes as many bytes as it holds. */
  into: Tensor;
}

/** Threads of one MappedFile.read: from the page cache a disk's or a bus's speed takes more than one, and one process per GPU reads. */
const READ_THREADS = 4;
/** Reads that fit the exchange buffer. */
const READS_PER_CALL = 16384;

/** A file mapped into memory: tensors over its bytes without a copy; pages are read when touched. */
export class MappedFile implements Disposable {
  readonly path: string;
  readonly byteLength: number;
  readonly #handle: number;

  private constructor(path: string, handle: number, byteLength: number) {
    this.path = path;
    this.#handle = handle;
    this.byteLength = byteLength;
  }

  /** @throws NativeError when the file cannot be opened */
  static open(path: string): MappedFile {
    try {
      const handle = addon.mapOpen(path);
      return new MappedFile(path, handle, io[0]!);
    } catch (cause) {
      throw typedError("MappedFile.open", path, [], cause);
    }
  }

  /**
   * A CPU tensor over the bytes from `byteOffset` on; keeps the mapping alive. Bytes that lie badly for the dtype are copied. Writing
   * into it changes a private copy of the page, never the file.
   * @throws NativeError when the bytes lie outside the file, UseAfterFreeError after close()
   */
  tensor(byteOffset: number, shape: readonly number[], dtype: DType): Tensor {
    for (let i = 0; i < shape.length; i++) io[i] = shape[i]!;
    try {
      return new Tensor(addon.mapTensor(this.#handle, byteOffset, shape.length, dtypeCode(dtype)));
    } catch (cause) {
      if (cause instanceof GroveError) throw cause;
      throw typedError(
        "MappedFile.tensor",
        `${this.path}, ${byteOffset}, [${shape.join(", ")}] ${dtype}`,
        shape,
        cause,
      );
    }
  }

  /**
   * Reads bytes straight into tensors of one device, by several threads. What the device was asked to do before is done first; when this
   * returns, the bytes are there.
   * @throws NativeError when bytes lie outside their file, a tensor is not contiguous or is on another device than the first
   */
  static read(reads: readonly FileRead[], options: { threads?: number } = {}): void {
    for (let begin = 0; begin < reads.length; begin += READS_PER_CALL) {
      const batch = reads.slice(begin, begin + READS_PER_CALL);
      batch.forEach(({ file, byteOffset, into }, i) => {
        io[3 * i] = file.#handle;
        io[3 * i + 1] = byteOffset;
        io[3 * i + 2] = into.handle;
      });
      try {
        addon.mapRead(batch.length, options.threads ?? READ_THREADS);
      } catch (cause) {
        const files = [...new Set(batch.map(({ file }) => file.path))];
        throw typedError("MappedFile.read", files.join(", "), batch[0]?.into.shape ?? [], cause);
      }
    }
  }

  /** No further tensors; the mapping itself ends with its last tensor. */
  close(): void {
    addon.mapClose(this.#handle);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** dtype a typed array is copied as without conversion; null for plain arrays and kinds that libtorch lacks here. */
function sourceDType(data: unknown): DType | null {
  if (data instanceof Float32Array) return "float32";
  if (data instanceof Float64Array) return "float64";
  if (data instanceof BigInt64Array) return "int64";
  if (data instanceof Int32Array) return "int32";
  if (data instanceof Int16Array) return "int16";
  if (data instanceof Uint8Array) return "uint8";
  return null;
}

/** An array for `count` elements of a tensor, and the dtype it holds them as. */
function emptyArray(dtype: DType, count: number): [NumberArray, DType] {
  switch (dtype) {
    case "float32":
    case "bfloat16":
    case "float16":
      return [new Float32Array(count), "float32"];
    case "float64":
      return [new Float64Array(count), "float64"];
    case "int64":
      return [new BigInt64Array(count), "int64"];
    case "int32":
      return [new Int32Array(count), "int32"];
    case "int16":
      return [new Int16Array(count), "int16"];
    case "uint8":
    case "bool":
      return [new Uint8Array(count), "uint8"];
    default:
      throw new DTypeError("toArray", "a known dtype", dtype satisfies never);
  }
}

function guard<T>(what: string, tensor: Tensor, run: () => T): T {
  try {
    return run();
  } catch (cause) {
    // Metadata may be gone with the tensor, so the message names no shape.
    throw typedError(what, `tensor #${tensor.handle}`, [], cause);
  }
}
