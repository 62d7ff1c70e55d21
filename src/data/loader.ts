/**
 * Prompts for samples: media through the worker pool, recent prompts kept in memory, the next steps' prepared ahead. The one place that decides
 * what an unusable sample does to a run.
 */

import type { Prompt, Sample } from "../types.ts";
import { BadSamples } from "./bad-samples.ts";
import { mediaKey } from "./check-media.ts";
import type { MediaRequest } from "./load-media.ts";
import { MediaPool } from "./media-pool.ts";
import type { DataLog, DataOptions } from "./options.ts";
import { type MediaRef, mediaOf, type Processor } from "./processor.ts";
import { type MediaSize, promptLength } from "./prompt-length.ts";

/** Prompts kept in memory; a prompt of 16 frames and an image at 252 x 252 takes 14 MB. */
const MEMORY_BYTES = 2 ** 30;
const GIB = 2 ** 30;

export interface PromptLoaderOptions {
  processor: Processor;
  config: DataOptions;
  log?: DataLog;
  /** Counts bad samples together with others of the same run; default: a count of the loader's own. */
  bad?: BadSamples;
  /** Default 1 GiB. */
  memoryBytes?: number;
}

export class PromptLoader {
  readonly #processor: Processor;
  readonly #config: DataOptions;
  readonly #pool: MediaPool;
  readonly #bad: BadSamples;
  readonly #memoryBytes: number;
  /** Finished prompts, the one used longest ago first. */
  readonly #ready = new Map<string, Prompt>();
  #readyBytes = 0;
  readonly #pending = new Map<string, Promise<Prompt>>();
  /** Samples that failed, and why. */
  readonly #failed = new Map<string, { error: unknown }>();
  readonly #sizes = new Map<string, MediaSize>(); // by mediaKey
  #ahead: Sample[] = [];
  #running = 0;

  constructor({ processor, config, log, bad, memoryBytes = MEMORY_BYTES }: PromptLoaderOptions) {
    this.#processor = processor;
    this.#config = config;
    this.#pool = new MediaPool(config.workers);
    this.#bad = bad ?? new BadSamples(config, log);
    this.#memoryBytes = memoryBytes;
  }

  /** Samples skipped so far. */
  get badSamples(): number {
    return this.#bad.count;
  }

  /**
   * The sample's prompt, or null for one that is skipped and counted (once, however often it is asked for). Callers share the returned prompt
   * and must not change it.
   *
   * @throws DataError naming file, line and sample, with onBadSample "error" or once more than maxBadSamples were skipped
   */
  async load(sample: Sample): Promise<Prompt | null> {
    const key = keyOf(sample);
    const ready = this.#ready.get(key);
    if (ready !== undefined) {
      this.#ready.delete(key);
      this.#ready.set(key, ready);
      return ready;
    }
    try {
      const failed = this.#failed.get(key);
      if (failed !== undefined) throw failed.error;
      return await this.#start(sample);
    } catch (error) {
      this.#bad.report({ ...sample.source, sampleId: sample.id }, error);
      return null;
    }
  }

  /**
   * Tokens of the sample's prompt, told by its text and the headers of its media; 0 for one that cannot be measured, which is likely one that cannot
   * be used. Nothing is decoded, reported or counted, and it says the same whatever has been loaded before.
   */
  async length(sample: Sample): Promise<number> {
    try {
      const sizes = await Promise.all(mediaOf(sample).map((ref) => this.#sizeOf(ref)));
      return promptLength(sample, sizes, this.#processor, this.#config.maxPromptTokens);
    } catch {
      return 0; // load() says why
    }
  }

  /**
   * Starts preparing samples that will be asked for later, at most as many at a time as there are workers. Call it with the next steps'
   * samples, soonest first; what an earlier call left undone is forgotten. Failures show when the sample is loaded.
   */
  prefetch(samples: readonly Sample[]): void {
    this.#ahead = samples.filter((sample) => !this.#isKnown(keyOf(sample)));
    this.#runAhead();
  }

  async close(): Promise<void> {
    this.#ahead = [];
    await this.#pool.close();
    await Promise.allSettled(this.#pending.values());
  }

  #runAhead(): void {
    while (this.#running < this.#config.workers && this.#ahead.length > 0) {
      const sample = this.#ahead.shift() as Sample;
      if (this.#isKnown(keyOf(sample))) continue;
      this.#running++;
      this.#start(sample)
        .catch(() => {}) // kept in #failed until someone loads the sample
        .finally(() => {
          this.#running--;
          this.#runAhead();
        });
    }
  }

  #isKnown(key: string): boolean {
    return this.#ready.has(key) || this.#pending.has(key) || this.#failed.has(key);
  }

  #start(sample: Sample): Promise<Prompt> {
    const key = keyOf(sample);
    let pending = this.#pending.get(key);
    if (pending === undefined) {
      pending = this.#build(sample)
        .then((prompt) => {
          this.#remember(key, prompt);
          return prompt;
        })
        .catch((error) => {
          this.#failed.set(key, { error });
          throw error;
        })
        .finally(() => this.#pending.delete(key));
      this.#pending.set(key, pending);
    }
    return pending;
  }

  async #build(sample: Sample): Promise<Prompt> {
    const { patchRule } = this.#processor;
    const pictures = await Promise.all(
      mediaOf(sample).map((ref) => this.#pool.loadPicture(this.#requestOf(ref), patchRule)),
    );
    return this.#processor.build(sample, pictures);
  }

  async #sizeOf(ref: MediaRef): Promise<MediaSize> {
    const known = this.#sizes.get(mediaKey(ref)) ?? (await this.#pool.size(this.#requestOf(ref)));
    this.#sizes.set(mediaKey(ref), known);
    return known;
  }

  #requestOf(ref: MediaRef): MediaRequest {
    const { cacheDir, cacheGib } = this.#config;
    const cache = cacheGib > 0 ? { folder: cacheDir, limitBytes: cacheGib * GIB } : null;
    return { ...ref, frames: frameRule(this.#config), size: this.#processor.sizeRule, cache };
  }

  #remember(key: string, prompt: Prompt): void {
    this.#ready.set(key, prompt);
    this.#readyBytes += bytesOf(prompt);
    for (const [oldest, old] of this.#ready) {
      if (this.#readyBytes <= this.#memoryBytes || oldest === key) break;
      this.#ready.delete(oldest);
      this.#readyBytes -= bytesOf(old);
    }
  }
}

/**
 * Ids are unique within one file only, and one loader may serve training and evaluation sets: of the same file too, whose options are
 * shuffled for training only, so that one id has two prompts.
 */
function keyOf(sample: Sample): string {
  return `${sample.source.file}\0${sample.id}\0${JSON.stringify(sample.messages)}`;
}

function frameRule({ fps, minFrames, maxFrames }: DataOptions) {
  return { fps, minFrames, maxFrames };
}

function bytesOf(prompt: Prompt): number {
  const pixels = [...prompt.images, ...prompt.videos].reduce((sum, input) => sum + input.pixels.byteLength, 0);
  return pixels + prompt.inputIds.byteLength + prompt.positions.byteLength;
}
