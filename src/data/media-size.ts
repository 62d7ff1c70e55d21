/** How large a picture or video will be once it is decoded and resized, told by its header and packets: no pixel is decoded. */

import sharp from "sharp";
import { MediaError } from "../errors.ts";
import { frameCount } from "./frame-index.ts";
import type { FrameRule, SizeRule } from "./options.ts";
import { scanPackets } from "./packets.ts";
import type { MediaRef } from "./processor.ts";
import type { MediaSize } from "./prompt-length.ts";
import { targetSize } from "./resize.ts";

/**
 * The size that decoding will give, but for what packets do not tell: of a video without presentation times, or with frames that do not decode, another
 * number of frames; of one that is shown turned by a quarter, height and width the other way round, which is as many tokens.
 * @throws MediaError for a file that cannot be read or is too short
 */
export async function mediaSize({ kind, file }: MediaRef, frames: FrameRule, size: SizeRule): Promise<MediaSize> {
  if (kind === "image") {
    const { width, height } = await sharp(file)
      .metadata()
      .catch((cause: Error) => {
        throw new MediaError(file, `cannot be read: ${cause.message}`, {}, cause);
      });
    return sized(kind, 1, targetSize(height, width, size, file));
  }
  const { pts, averageFps, width, height } = await scanPackets(file);
  const count = frameCount(pts.length, averageFps, frames);
  if (!(count >= 2)) throw new MediaError(file, `has ${pts.length} frames, at least 2 are needed`);
  return sized(kind, count, targetSize(height, width, size, file));
}

function sized(kind: MediaSize["kind"], frames: number, [height, width]: [number, number]): MediaSize {
  return { kind, frames, height, width };
}
