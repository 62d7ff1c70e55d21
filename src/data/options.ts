/**
 * The knobs of src/data, as plain objects. No defaults here: src/config declares, describes and fills them in.
 */

/** Which frames of a video are looked at. */
export interface FrameRule {
  /** Frames wanted per second of video. */
  fps: number;
  minFrames: number;
  maxFrames: number;
}

/** To what size an image or a frame is brought before it is cut into patches. */
export interface SizeRule {
  /** Height and width become multiples of this: patch size times spatial merge, 28 for Qwen2-VL. */
  factor: number;
  minPixels: number;
  maxPixels: number;
  /** Both set: every image and frame gets this size (rounded to the factor), its aspect ratio and the pixel limits are ignored. */
  resizedHeight?: number | undefined;
  resizedWidth?: number | undefined;
}

/** Everything src/data can be told, one spelling from YAML to here. */
export interface DataOptions extends FrameRule, Omit<SizeRule, "factor"> {
  /** A prompt with more tokens is refused, never cut. */
  maxPromptTokens: number;
  /** What a sample that cannot be used does: stop the run, or be counted, logged and left out. */
  onBadSample: "error" | "skip";
  /** With `skip`: so many bad samples are tolerated, one more stops the run. */
  maxBadSamples: number;
  /** Threads that decode and resize. */
  workers: number;
  /** Steps whose prompts are prepared ahead: how far the caller of `PromptLoader.prefetch` looks. */
  prefetch: number;
  /** Folder of decoded frames. */
  cacheDir: string;
  /** Size limit of that folder, GiB; 0 for no cache. */
  cacheGib: number;
}

/** Decoded, resized pixels of one image or video: what a media worker hands back. */
export interface Media {
  kind: "image" | "video";
  frames: number; // 1 for an image, even for a video
  height: number;
  width: number;
  /** uint8 RGB, [frames, height, width, 3]. */
  data: Uint8Array;
}

/** The part of a pino logger that src/data uses. */
export interface DataLog {
  warn(fields: Record<string, unknown>, message: string): void;
}
