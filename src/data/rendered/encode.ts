/** Writes frames as an H.264 mp4 by one ffmpeg process, and a picture as a PNG. Both appear under their names only when they are complete. */

import { rename, rm } from "node:fs/promises";
import sharp from "sharp";
import { encodeWithFfmpeg } from "../ffmpeg.ts";

/**
 * Encodes uint8 RGB frames [n, height, width, 3] as H.264, yuv420p, constant frame rate. The same frames give the same bytes with one
 * build of ffmpeg: one thread, and no version or date in the file.
 * @throws MediaError with ffmpeg's own words
 */
export async function encodeVideo(
  file: string,
  frames: Uint8Array,
  width: number,
  height: number,
  fps: number,
): Promise<void> {
  const partial = `${file}.${process.pid}.part`;
  const input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", `${width}x${height}`, "-r", String(fps), "-i", "pipe:0"];
  const codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p", "-threads", "1"];
  const exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"];
  try {
    await encodeWithFfmpeg(["-loglevel", "error", ...input, ...codec, ...exact, "-f", "mp4", partial], frames);
  } catch (cause) {
    await rm(partial, { force: true });
    throw cause;
  }
  await rename(partial, file);
}

/** Writes a uint8 RGB picture [height, width, 3] as a PNG. */
export async function encodePicture(file: string, pixels: Uint8Array, width: number, height: number): Promise<void> {
  const partial = `${file}.${process.pid}.part`;
  await sharp(pixels, { raw: { width, height, channels: 3 } })
    .png()
    .toFile(partial);
  await rename(partial, file);
}
