/** Splits a stream of PPM pictures (what ffmpeg's `-f image2pipe -c:v ppm` writes): each says its own size, so rotation needs no guess. */

export interface Picture {
  width: number;
  height: number;
  /** uint8 RGB, [height, width, 3]; a view, not a copy. */
  data: Uint8Array;
}

/** All complete pictures in `bytes`. A cut-off last one is left out: the caller counts. */
export function splitPpm(bytes: Buffer): Picture[] {
  const pictures: Picture[] = [];
  let at = 0;
  while (at < bytes.length) {
    const header = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.toString("latin1", at, at + 40));
    if (!header) break;
    const width = Number(header[1]);
    const height = Number(header[2]);
    const begin = at + header[0].length;
    const end = begin + width * height * 3;
    if (end > bytes.length) break;
    pictures.push({ width, height, data: bytes.subarray(begin, end) });
    at = end;
  }
  return pictures;
}
