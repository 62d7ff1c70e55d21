/** Threads that decode, resize and cut into patches, so that the training thread never waits for a codec and never touches a pixel. */

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Piscina } from "piscina";
import { GroveError, invariant, MediaError } from "../errors.ts";
import type { MediaRequest } from "./load-media.ts";
import type { MediaReply, MediaTask } from "./media-worker.ts";
import type { Media } from "./options.ts";
import type { PatchRule, Picture } from "./patches.ts";
import type { MediaSize } from "./prompt-length.ts";

export class MediaPool {
  readonly #pool: Piscina<MediaTask, MediaReply>;
  #closed = false;

  /** @param workers threads; they start with the first work there is */
  constructor(workers: number) {
    const { url, execArgv } = workerEntry();
    this.#pool = new Piscina({ filename: url.href, execArgv, minThreads: 0, maxThreads: workers, idleTimeout: 60_000 });
    this.#pool.on("error", (error) => {
      // A worker's reply to work that was given up, seen when a run ends early: nobody waits for it.
      if (!this.#closed) throw error;
    });
  }

  /**
   * A file's resized pixels.
   * @throws MediaError for a file that cannot be used; ConfigError's and ffmpeg's codes for what no other file would mend
   */
  async load(request: MediaRequest): Promise<Media> {
    const reply = await this.#run(request);
    invariant("media" in reply, "pixels were asked for");
    return reply.media;
  }

  /** A file's patches, as cutPatches gives them; throws like load. */
  async loadPicture(request: MediaRequest, patches: PatchRule): Promise<Picture> {
    const reply = await this.#run({ ...request, patches });
    invariant("picture" in reply, "patches were asked for");
    return reply.picture;
  }

  /** How large the file will be (media-size.ts), without decoding it; throws like load. */
  async size(request: MediaRequest): Promise<MediaSize> {
    const reply = await this.#run({ ...request, sizeOnly: true });
    invariant("size" in reply, "a size was asked for");
    return reply.size;
  }

  async #run(task: MediaTask): Promise<MediaReply> {
    const reply = await this.#pool.run(task);
    if (!("failure" in reply)) return reply;
    const { code, message, details } = reply.failure;
    if (code !== "MEDIA") throw new GroveError(code, message, details);
    throw new MediaError(task.file, message.replace(`${task.file}: `, ""), details);
  }

  /** Ends the threads; work under way is given up. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#pool.destroy();
  }
}

/** From source the worker is TypeScript and needs tsx, also where the program was started otherwise; in a bundle it lies beside as JavaScript. */
function workerEntry(): { url: URL; execArgv: string[] } {
  const source = new URL("./media-worker.ts", import.meta.url);
  if (!existsSync(fileURLToPath(source))) return { url: new URL("./media-worker.js", import.meta.url), execArgv: [] };
  const tsx = pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href;
  return { url: source, execArgv: ["--import", tsx] };
}
