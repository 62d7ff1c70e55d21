/** Entry of a media worker thread (media-pool.ts). Pixels are handed over without a copy; errors as plain data, since classes do not cross threads. */

import { move, transferableSymbol, valueSymbol } from "piscina";
import { GroveError } from "../errors.ts";
import { loadMedia, type MediaRequest } from "./load-media.ts";
import type { Media } from "./options.ts";

export type MediaReply = { media: Media } | { failure: Pick<GroveError, "code" | "message" | "details"> };

export default async function work(request: MediaRequest): Promise<MediaReply> {
  try {
    const media = await loadMedia(request);
    // A view on a larger buffer (a picture that needed no resizing) must not take its neighbours along.
    const whole = media.data.byteLength === media.data.buffer.byteLength && !Buffer.isBuffer(media.data);
    const data = whole ? media.data : media.data.slice();
    const reply: MediaReply = { media: { ...media, data } };
    return move({ [transferableSymbol]: data.buffer, [valueSymbol]: reply } as never) as unknown as MediaReply;
  } catch (cause) {
    if (!(cause instanceof GroveError)) throw cause;
    return { failure: { code: cause.code, message: cause.message, details: cause.details } };
  }
}
