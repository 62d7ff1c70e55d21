/** Where parameters lie in the optimizer's flat buffers, and what these take: plain arithmetic, no tensor. */

import type { Config } from "../config/schema.ts";
import { byPart, lastingPart, partOf } from "../model/qwen2vl/parameters.ts";

/** Parameters start at multiples of this many elements: a block of 8-bit moments has one scale (native/adamw_element.h) and one parameter. */
export const BLOCK = 256;

/** Elements of the moments that pass through the device together, where they are kept on the host; a multiple of BLOCK. */
export const STAGE_ELEMENTS = 2 ** 25;

/**
 * Where tensors of these element counts lie in one flat buffer, and how many elements the buffer has: a multiple of BLOCK for each of `shares`
 * equal parts.
 */
export function flatLayout(counts: readonly number[], shares = 1): { starts: number[]; size: number } {
  let size = 0;
  const starts = counts.map((count) => {
    const start = size;
    size += Math.ceil(count / BLOCK) * BLOCK;
    return start;
  });
  const whole = BLOCK * shares;
  return { starts, size: Math.ceil(size / whole) * whole };
}

/** The parameters of one part of the model, neighbours in the flat layout. Among ranks they travel together, cut into equal parts. */
export interface Bucket {
  part: string; // see partOf
  begin: number; // in the flat layout
  size: number; // elements; a multiple of BLOCK for each rank
}

export interface BucketLayout {
  starts: number[]; // of each parameter in the flat layout
  size: number;
  buckets: Bucket[]; // one behind the other
  lasting: string | null; // see lastingPart
}

/** Where parameters lie whose gradients and weights travel among `world` ranks; one rank has a single bucket. */
export function bucketLayout(parameters: readonly { name: string; numel: number }[], world: number): BucketLayout {
  const lasting = lastingPart(parameters.map(({ name }) => name));
  const layout: BucketLayout = { starts: [], size: 0, buckets: [], lasting };
  for (const members of world === 1 ? [parameters] : byPart(parameters)) {
    const { starts, size } = flatLayout(
      members.map(({ numel }) => numel),
      world,
    );
    layout.starts.push(...starts.map((start) => layout.size + start));
    layout.buckets.push({ part: partOf(members[0]?.name ?? ""), begin: layout.size, size });
    layout.size += size;
  }
  return layout;
}

/** Bytes that AdamW allocates per element of the flat layout: gradients and all else, on the weights' device and on the host. */
export function bytesPerParameter({
  device,
  dtype,
  optimizer,
}: Pick<Config, "device" | "dtype"> & { optimizer: Pick<Config["optimizer"], "moments" | "offload"> }): {
  gradients: number;
  device: number;
  host: number;
} {
  const half = dtype === "bfloat16";
  const low = half ? 2 : 0; // of the split master
  const moments = momentBytes(optimizer.moments);
  const away = isOffloaded(device, optimizer.offload);
  return { gradients: half ? 2 : 4, device: low + (away ? 0 : moments), host: away ? moments : 0 };
}

/** Bytes on the device through which moments on the host pass, beside bytesPerParameter, for a flat layout of `size` elements. */
export function stagingBytes(
  { device, optimizer }: Pick<Config, "device"> & { optimizer: Pick<Config["optimizer"], "moments" | "offload"> },
  size: number,
): number {
  if (!isOffloaded(device, optimizer.offload)) return 0;
  return stageCount(size, STAGE_ELEMENTS) * Math.min(size, STAGE_ELEMENTS) * momentBytes(optimizer.moments);
}

/** Three at most: one is filled, one used, one emptied. */
export function stageCount(size: number, stageElements: number): number {
  return Math.min(3, Math.ceil(size / stageElements));
}

/** Whether moments are somewhere else than the weights: on the CPU there is nowhere else. */
export function isOffloaded(device: string, offload: Config["optimizer"]["offload"]): boolean {
  return offload === "cpu" && device !== "cpu";
}

/** Of both moments of one element; 8-bit ones have a float32 scale a block. */
function momentBytes(kind: Config["optimizer"]["moments"]): number {
  return kind === "float32" ? 4 + 4 : kind === "bfloat16" ? 2 + 2 : 1 + 1 + 2 * (4 / BLOCK);
}
