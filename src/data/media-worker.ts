/** Entry of a media worker thread (media-pool.ts). Pixels are handed over without a copy; errors as plain data, since classes do not cross threads. */

import { move, transferableSymbol, valueSymbol } from "piscina";
import { GroveError } from "../errors.ts";
import { loadMedia, loadPicture, type MediaRequest } from "./load-media.ts";
import type { Media } from "./options.ts";
import type { PatchRule, Picture } from "./patches.ts";

/** Patches of the file where `patches` says how to cut them, its pixels otherwise. */
export interface MediaTask extends MediaRequest {
  patches?: PatchRule;
}

export type MediaReply =
  | { media: Media }
  | { picture: Picture }
  | { failure: Pick<GroveError, "code" | "message" | "details"> };

export default async function work({ patches, ...request }: MediaTask): Promise<MediaReply> {
  try {
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
