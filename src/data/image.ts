/** Pixels of an image file, as the seed's PIL code reads them: no orientation tag applied, no colour profile, RGBA over white. */

import { access } from "node:fs/promises";
import sharp from "sharp";
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
    const { hasAlpha, isPalette } = await input.metadata();
    const colour = input.toColourspace("srgb");
    // PIL knows an alpha channel in true-colour files only; a palette's transparency is dropped.
    const pixels = hasAlpha && !isPalette ? colour.ensureAlpha() : colour.removeAlpha();
    const { data, info } = await pixels.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
    const rgb = info.channels === 4 ? overWhite(data) : info.channels === 3 ? new Uint8Array(data) : greyToRgb(data);
    return { width: info.width, height: info.height, data: rgb };
  } catch (cause) {
    throw new MediaError(file, `cannot be decoded: ${(cause as Error).message}`, {}, cause);
  }
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
