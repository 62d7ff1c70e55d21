/** Entry of a media worker thread (media-pool.ts). Pixels are handed over without a copy; errors as plain data, since classes do not cross threads. */

import { move, transferableSymbol, valueSymbol } from "piscina";
import { GroveError } from "../errors.ts";
import { loadMedia, loadPicture, type MediaRequest } from "./load-media.ts";
import { mediaSize } from "./media-size.ts";
import type { Media } from "./options.ts";
import type { PatchRule, Picture } from "./patches.ts";
import type { MediaSize } from "./prompt-length.ts";

/** Its size alone where that is all; patches of the file where `patches` says how to cut them, its pixels otherwise. */
export interface MediaTask extends MediaRequest {
  patches?: PatchRule;
  sizeOnly?: boolean;
}

export type MediaReply =
  | { media: Media }
  | { picture: Picture }
  | { size: MediaSize }
  | { failure: Pick<GroveError, "code" | "message" | "details"> };

export default async function work({ patches, sizeOnly = false, ...request }: MediaTask): Promise<MediaReply> {
  try {
    if (sizeOnly) return { size: await mediaSize(request, request.frames, request.size) };
    if (patches !== undefined) {
      const picture = await loadPicture(request, patches);
      return handOver(picture.input.pixels.buffer as ArrayBuffer, { picture });
    }
    const media = await loadMedia(request);
    // A view on a larger buffer (a picture that needed no resizing) must not take its neighbours along.
    const whole = media.data.byteLength === media.data.buffer.byteLength && !Buffer.isBuffer(media.data);
    const data = whole ? media.data : media.data.slice();
    return handOver(data.buffer as ArrayBuffer, { media: { ...media, data } });
  } catch (cause) {
    if (!(cause instanceof GroveError)) throw cause;
    return { failure: { code: cause.code, message: cause.message, details: cause.details } };
  }
}

function handOver(buffer: ArrayBuffer, reply: MediaReply): MediaReply {
  return move({ [transferableSymbol]: buffer, [valueSymbol]: reply } as never) as unknown as MediaReply;
}
