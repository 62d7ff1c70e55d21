/**
 * Pixels of an image file as the seed gets them: `Image.open`, an RGBA picture laid over white, any other mode `convert("RGB")`. So the
 * orientation tag is not applied and no colour profile either. Level for level what Pillow 11 makes of PNG, JPEG, WebP, TIFF, also of 16-bit
 * and CMYK ones; only transparent pixels of a GIF come out black instead of in the palette's colour (libvips drops it).
 */

import { access, open } from "node:fs/promises";
import sharp, { type Sharp } from "sharp";
import { MediaError } from "../errors.ts";
import type { Picture } from "./ppm.ts";

/**
 * Decodes an image to RGB.
 *
 * @throws MediaError for a missing or broken file
 */
export async function decodeImage(file: string): Promise<Picture> {
  await access(file).catch((cause) => {
    throw new MediaError(file, cause.code === "ENOENT" ? "no such file" : "cannot be read", {}, cause);
  });
  try {
    const input = sharp(file, { ignoreIcc: true, failOn: "error" });
    const { space, hasAlpha, isPalette, format } = await input.metadata();
    if (space === "cmyk") return await read(input.pipelineColourspace("cmyk").toColourspace("cmyk"), cmykToRgb);
    // Pillow clips 16-bit grey at 255 instead of scaling it; with an alpha channel it scales.
    if (space === "grey16" && !hasAlpha) return await read(input.toColourspace("grey16"), clippedGreyToRgb, "ushort");
    const colour = input.toColourspace("srgb");
    const overlaid = format === "png" ? await pngIsRgba(file) : hasAlpha && !isPalette;
    return await read(overlaid ? colour.ensureAlpha() : colour.removeAlpha(), toRgb);
  } catch (cause) {
    throw new MediaError(file, `cannot be decoded: ${(cause as Error).message}`, {}, cause);
  }
}

async function read(
  image: Sharp,
  convert: (data: Buffer, channels: number) => Uint8Array,
  depth: "uchar" | "ushort" = "uchar",
): Promise<Picture> {
  const { data, info } = await image.raw({ depth }).toBuffer({ resolveWithObject: true });
  return { width: info.width, height: info.height, data: convert(data, info.channels) };
}

/** Whether Pillow opens a PNG as RGBA. It does not for grey with alpha (unless 16-bit), nor for a transparent palette entry, colour or level. */
async function pngIsRgba(file: string): Promise<boolean> {
  const handle = await open(file);
  try {
    const { buffer } = await handle.read(Buffer.alloc(26), 0, 26, 0);
    const [bitDepth, colourType] = [buffer[24], buffer[25]]; // of the header chunk, always the first
    return colourType === 6 || (colourType === 4 && bitDepth === 16);
  } finally {
    await handle.close();
  }
}

function toRgb(data: Buffer, channels: number): Uint8Array {
  return channels === 4 ? overWhite(data) : channels === 3 ? new Uint8Array(data) : greyToRgb(data);
}

/** Pillow's arithmetic, without inks' profiles. */
function cmykToRgb(data: Buffer): Uint8Array {
  const out = new Uint8ClampedArray((data.length / 4) * 3);
  for (let i = 0, o = 0; i < data.length; i += 4) {
    const white = 255 - data[i + 3]!;
    for (let c = 0; c < 3; c++) out[o++] = white - multiply(data[i + c]!, white);
  }
  return new Uint8Array(out.buffer);
}

function clippedGreyToRgb(data: Buffer): Uint8Array {
  return greyToRgb(Uint8Array.from({ length: data.length / 2 }, (_, i) => Math.min(data.readUInt16LE(i * 2), 255)));
}

/** a * b / 255, rounded, in Pillow's integers. */
function multiply(a: number, b: number): number {
  const product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

/** PIL's `paste` with a mask: its integer division by 255, so that every grey level comes out the same. */
function overWhite(rgba: Uint8Array): Uint8Array {
  const out = new Uint8Array((rgba.length / 4) * 3);
  for (let i = 0, o = 0; i < rgba.length; i += 4) {
    const alpha = rgba[i + 3]!;
    for (let c = 0; c < 3; c++) {
      const sum = 255 * (255 - alpha) + rgba[i + c]! * alpha + 128;
      out[o++] = ((sum >> 8) + sum) >> 8;
    }
  }
  return out;
}

function greyToRgb(grey: Uint8Array): Uint8Array {
  const out = new Uint8Array(grey.length * 3);
  for (let i = 0; i < grey.length; i++) out.fill(grey[i]!, i * 3, i * 3 + 3);
  return out;
}
