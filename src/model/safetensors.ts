/**
 * The safetensors format: 8 bytes of header length (little endian), a JSON header of `{name: {dtype, shape, data_offsets}}`, then the
 * raw data. An open file is mapped: a tensor of it costs nothing until it is touched; weights are read into their place (weight-reader.ts).
 * Writing goes to a temporary name, is flushed to
 * the disk, and then renamed, so that a crash never leaves a half-written file under the real name.
 */

import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { CheckpointError, invariant } from "../errors.ts";
import { contiguous, to, viewDtype } from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import { type DType, type FileRead, MappedFile, type Tensor } from "../torch/tensor.ts";
import { parseObject } from "./json.ts";

const DTYPES: Record<string, { dtype: DType; bytes: number }> = {
  F64: { dtype: "float64", bytes: 8 },
  F32: { dtype: "float32", bytes: 4 },
  F16: { dtype: "float16", bytes: 2 },
  BF16: { dtype: "bfloat16", bytes: 2 },
  I64: { dtype: "int64", bytes: 8 },
  I32: { dtype: "int32", bytes: 4 },
  I16: { dtype: "int16", bytes: 2 },
  U8: { dtype: "uint8", bytes: 1 },
  BOOL: { dtype: "bool", bytes: 1 },
};
const NAMES = new Map(Object.entries(DTYPES).map(([name, { dtype }]) => [dtype, name]));

const MAX_HEADER_BYTES = 100_000_000; // the limit of the reference implementation

interface Entry {
  dtype: DType;
  shape: number[];
  offset: number; // from the start of the file
}

/** One open file. Its tensors are CPU views of the map, valid after close() too (a view keeps the map alive); do not write to them. */
export class SafetensorsFile implements Disposable {
  readonly path: string;
  readonly metadata: Record<string, string>;
  readonly #entries: Map<string, Entry>;
  readonly #map: MappedFile;

  /** @throws CheckpointError when the file is missing, cut off, or its header is damaged. */
  constructor(path: string) {
    this.path = path;
    const { entries, metadata } = readHeader(path);
    this.#entries = entries;
    this.metadata = metadata;
    this.#map = MappedFile.open(path);
  }

  names(): string[] {
    return [...this.#entries.keys()];
  }

  shape(name: string): readonly number[] {
    return this.#entry(name).shape;
  }

  dtype(name: string): DType {
    return this.#entry(name).dtype;
  }

  /** The bytes of a tensor from its element `first` on, for MappedFile.read: as many as `into` (of the same dtype) holds. */
  read(name: string, into: Tensor, first = 0): FileRead {
    const { offset, dtype } = this.#entry(name);
    return { file: this.#map, byteOffset: offset + byteLength(dtype, [first]), into };
  }

  tensor(name: string): Tensor {
    const { offset, shape, dtype } = this.#entry(name);
    return this.#map.tensor(offset, shape, dtype);
  }

  [Symbol.dispose](): void {
    this.#map.close();
  }

  #entry(name: string): Entry {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw new CheckpointError(this.path, `no tensor named "${name}"`);
    return entry;
  }
}

/**
 * Opens the weights of a Hugging Face folder: `model.safetensors`, or else the shards that `model.safetensors.index.json` names. Where an earlier save
 * has left the other one behind, that is what transformers loads.
 * @throws CheckpointError when there are none, a shard is missing, or two shards hold the same tensor.
 */
export function openShards(folder: string): { files: SafetensorsFile[]; fileOf: Map<string, SafetensorsFile> } {
  const indexPath = join(folder, "model.safetensors.index.json");
  const single = join(folder, "model.safetensors");
  if (!existsSync(single) && !existsSync(indexPath))
    throw new CheckpointError(folder, "holds neither model.safetensors nor model.safetensors.index.json");
  const paths = existsSync(single) ? [single] : shardNames(indexPath).map((name) => join(folder, name));
  const files: SafetensorsFile[] = [];
  const fileOf = new Map<string, SafetensorsFile>();
  try {
    for (const path of paths) {
      const file = new SafetensorsFile(path);
      files.push(file);
      for (const name of file.names()) {
        const other = fileOf.get(name);
        if (other !== undefined) throw new CheckpointError(file.path, `tensor "${name}" is also in ${other.path}`);
        fileOf.set(name, file);
      }
    }
  } catch (error) {
    for (const file of files) file[Symbol.dispose]();
    throw error;
  }
  return { files, fileOf };
}

function shardNames(indexPath: string): string[] {
  const { weight_map } = parseObject(indexPath, readFileSync(indexPath, "utf8"));
  const names = [...new Set(Object.values(weight_map ?? {}))];
  if (names.length === 0 || !names.every((name) => typeof name === "string"))
    throw new CheckpointError(indexPath, "has no weight_map of tensors to files");
  return names;
}

/** A tensor that is to be stored: declared first, for the header; asked for when its turn comes. */
export interface TensorEntry {
  name: string;
  dtype: DType;
  shape: readonly number[];
  read: () => Tensor;
}

/** What stands before the data of these tensors, in this order. */
export function safetensorsHeader(
  tensors: readonly TensorEntry[],
  metadata: Record<string, string> = { format: "pt" },
): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let end = 0;
  for (const { name, dtype, shape } of tensors) {
    const begin = end;
    end += byteLength(dtype, shape);
    header[name] = { dtype: NAMES.get(dtype), shape, data_offsets: [begin, end] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const padding = Buffer.alloc((8 - (text.length % 8)) % 8, " "); // data starts at a multiple of 8 bytes
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length + padding.length));
  return Buffer.concat([length, text, padding]);
}

/** Writes tensors of any device in the given order, one at a time, so that the host never holds more than one of them. */
export function writeSafetensors(
  path: string,
  tensors: readonly TensorEntry[],
  metadata: Record<string, string> = { format: "pt" },
): void {
  const header = safetensorsHeader(tensors, metadata);
  replaceFile(path, (fd) => {
    writeAll(fd, header);
    for (const { name, dtype, shape, read } of tensors) {
      scope(() => {
        const tensor = read();
        const bytes = tensorBytes(tensor);
        const isAsDeclared = tensor.dtype === dtype && bytes.length === byteLength(dtype, shape);
        invariant(isAsDeclared, `tensor "${name}" is not the ${dtype} [${shape.join(", ")}] that the header says`);
        writeAll(fd, bytes);
      });
    }
  });
}

/** Bytes of a tensor of this shape. */
export function byteLength(dtype: DType, shape: readonly number[]): number {
  const name = NAMES.get(dtype);
  return shape.reduce((a, b) => a * b, 1) * (DTYPES[name as string] as { bytes: number }).bytes;
}

/** Creates or replaces a file so that its old content stays whole until all of the new one is on the disk. */
export function replaceFile(path: string, write: (fd: number) => void): void {
  const temporary = `${path}.tmp-${process.pid}`;
  const fd = openSync(temporary, "w");
  try {
    write(fd);
    fsyncSync(fd);
  } catch (error) {
    rmSync(temporary);
    throw error;
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, path);
  const folder = openSync(dirname(path), "r"); // the rename itself must reach the disk too
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

/** A tensor's bytes as a file holds them, in memory of their own. Waits for the device. */
export function tensorBytes(tensor: Tensor): Uint8Array {
  // bfloat16 and float16 have no typed array in JavaScript: their bits are read as int16
  const half = tensor.dtype === "bfloat16" || tensor.dtype === "float16";
  const onHost = to(tensor, { device: "cpu" });
  const array = (half ? viewDtype(contiguous(onHost), "int16") : onHost).toArray();
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(fd, bytes, done, Math.min(bytes.length - done, 1 << 30)); // one write call takes at most 2 GiB
  }
}

function readHeader(path: string): { entries: Map<string, Entry>; metadata: Record<string, string> } {
  if (!existsSync(path)) throw new CheckpointError(path, "no such file");
  const info = statSync(path);
  if (!info.isFile()) throw new CheckpointError(path, "is not a file");
  const size = info.size;
  const fd = openSync(path, "r");
  let text: string;
  let start: number;
  try {
    const length = Buffer.alloc(8);
    if (readSync(fd, length, 0, 8, 0) < 8) throw new CheckpointError(path, "is shorter than a safetensors header");
    if (length.toString("latin1") === "version ")
      throw new CheckpointError(path, "is a Git LFS pointer in place of the weights; run `git lfs pull` in its folder");
    const headerBytes = Number(length.readBigUInt64LE());
    start = 8 + headerBytes;
    if (headerBytes > MAX_HEADER_BYTES || start > size) {
      throw new CheckpointError(path, `header of ${headerBytes} bytes does not fit a file of ${size} bytes`);
    }
    const header = Buffer.alloc(headerBytes);
    readSync(fd, header, 0, headerBytes, 8);
    text = header.toString("utf8");
  } finally {
    closeSync(fd);
  }
  const entries = new Map<string, Entry>();
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(parseObject(path, text))) {
    if (name === "__metadata__") metadata = value as Record<string, string>;
    else entries.set(name, entryOf(path, name, value, { start, size }));
  }
  return { entries, metadata };
}

/** @param data where the file's data begin, and where the file ends */
function entryOf(path: string, name: string, value: unknown, { start, size }: { start: number; size: number }): Entry {
  const { dtype, shape, data_offsets } = (value ?? {}) as { dtype: string; shape: number[]; data_offsets: number[] };
  const isCounts = (numbers: unknown) => Array.isArray(numbers) && numbers.every(Number.isSafeInteger);
  if (!isCounts(shape) || !isCounts(data_offsets) || data_offsets.length !== 2 || shape.some((n) => n < 0))
    throw new CheckpointError(path, `malformed header entry "${name}"`);
  const type = Object.hasOwn(DTYPES, dtype) ? DTYPES[dtype] : undefined;
  if (type === undefined) throw new CheckpointError(path, `tensor "${name}" has the unsupported dtype ${dtype}`);
  const [begin, end] = data_offsets as [number, number];
  const wanted = byteLength(type.dtype, shape);
  if (end - begin !== wanted || begin < 0 || start + end > size) {
    throw new CheckpointError(
      path,
      `tensor "${name}" ${dtype} [${shape.join(", ")}] needs ${wanted} bytes, its range is [${begin}, ${end}) of ${size - start}; the file is cut off or damaged`,
    );
  }
  return { dtype: type.dtype, shape, offset: start + begin };
}
