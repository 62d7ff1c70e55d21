/**
 * Stored tensors into the memory of parameters, at the speed at which the files can be read: bytes go from the file to their place on the
 * device, through no copy of the weights on the host. Where the stored dtype is another one, pieces of the file are read to the device and
 * converted there.
 */

import { invariant } from "../errors.ts";
import { copy_, empty, reshape, slice } from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import { type FileRead, MappedFile, type Tensor } from "../torch/tensor.ts";
import { byteLength, type SafetensorsFile } from "./safetensors.ts";

/** One stored tensor and where it goes. */
export interface WeightRead {
  file: SafetensorsFile;
  name: string;
  /** Contiguous, as many elements as the stored tensor, of any shape, dtype and device; one device for all reads. */
  into: Tensor;
}

/** Bytes of stored values that wait for their conversion at a time. */
const STAGING_BYTES = 2 ** 27;

/** @throws NativeError when a file was cut off after it was opened */
export function readWeights(reads: readonly WeightRead[], options: { stagingBytes?: number } = {}): void {
  const straight = reads.filter(({ file, name, into }) => file.dtype(name) === into.dtype);
  const converted = reads.filter((read) => !straight.includes(read));
  MappedFile.read(straight.map(({ file, name, into }) => file.read(name, into)));
  for (const batch of pieces(converted, options.stagingBytes ?? STAGING_BYTES)) scope(() => readConverted(batch));
}

/** Elements [first, first + count) of a read. */
interface Piece {
  read: WeightRead;
  first: number;
  count: number;
}

function readConverted(batch: readonly Piece[]): void {
  const staged = batch.map(({ read: { file, name, into }, count }) =>
    empty([count], { dtype: file.dtype(name), device: into.device }),
  );
  MappedFile.read(
    batch.map(({ read: { file, name }, first }, i): FileRead => file.read(name, staged[i] as Tensor, first)),
  );
  batch.forEach(({ read: { into }, first, count }, i) => {
    copy_(slice(reshape(into, [into.numel]), 0, first, first + count), staged[i] as Tensor);
  });
}

/** The reads cut into batches of at most `limit` bytes of the file each, in order. */
function pieces(reads: readonly WeightRead[], limit: number): Piece[][] {
  const batches: Piece[][] = [];
  let room = 0;
  for (const read of reads) {
    const itemBytes = byteLength(read.file.dtype(read.name), [1]);
    const total = read.into.numel;
    invariant(limit >= itemBytes, "the staging memory does not hold one element");
    for (let first = 0; first < total; ) {
      if (room < itemBytes) {
        batches.push([]);
        room = limit;
      }
      const count = Math.min(total - first, Math.floor(room / itemBytes));
      batches.at(-1)?.push({ read, first, count });
      first += count;
      room -= count * itemBytes;
    }
  }
  return batches;
}
