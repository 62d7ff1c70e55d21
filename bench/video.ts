/**
 * What it costs to take 16 frames out of a video: decoding all of it, seeking, what data/decode-plan.ts chooses, and decord (what the seed reads
 * videos with; PyAV where there is no decord) in turns within one run. Three minutes of 1080p H.264 with several distances between key
 * frames, and small clips, on which the constants of the choice are checked.
 *
 *   node --import tsx bench/video.ts [--out file.json] [--folder cache/bench-video] [--repeats 5] [--seconds 180] [--step-seconds 4]
 *     [--workers 2] [--python python3]
 *
 * Wall-clock seconds and processor seconds (ours and ffmpeg's). The bar: at least as fast as decord. `other` is the way not chosen.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { dirname, join } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { planDecoding } from "../src/data/decode-plan.ts";
import { encodeWithFfmpeg, findFfmpeg } from "../src/data/ffmpeg.ts";
import { MediaPool } from "../src/data/media-pool.ts";
import { scanPackets } from "../src/data/packets.ts";
import { decodeVideo } from "../src/data/video.ts";

const RULE = { fps: 2, minFrames: 4, maxFrames: 16 };
/** The seed's 256 x 256, which is 252 x 252. */
const SIZE = { factor: 28, minPixels: 3136, maxPixels: 1e9, resizedHeight: 256, resizedWidth: 256 };
/** Questions of one of the seed's training steps: one for each of 8 GPUs, each with one video. */
const CLIPS_PER_STEP = 8;
/** Frame rate of the clips. */
const RATE = 30;
/** Seconds from which a way is timed less often: three times where it is chosen, once where it is not. */
const SLOW = 8;
const REFERENCE = fileURLToPath(new URL("video_reference.py", import.meta.url));

export interface VideoBenchOptions {
  folder?: string;
  repeats?: number;
  /** Size and length of the large clips. */
  size?: readonly [width: number, height: number];
  seconds?: number;
  /** Key-frame distances of the large clips; Infinity for none but the first. */
  distances?: readonly number[];
  /** What a training step takes. The default is this project's target, not a measurement. */
  stepSeconds?: number;
  workers?: number;
  python?: string;
  out?: string;
  log?: (line: string) => void;
}

interface Spread {
  median: number;
  min: number;
  max: number;
}

interface Cost {
  wallSeconds: Spread;
  cpuSeconds: Spread;
  repeats: number;
}

interface ClipSpec {
  width: number;
  height: number;
  seconds: number;
  distance: number;
}

interface ClipResult extends Omit<ClipSpec, "distance"> {
  keyFrameDistance: number | "first frame only";
  megabytes: number;
  scanSeconds: number;
  frames: number;
  chosen: Cost & { method: string; framesPerSecond: number };
  other: Cost & { method: string };
  /** What the choice rests on: frames to decode and processor seconds expected, either way. */
  plan: Record<"pass" | "seek", { frames: number; seconds: number }>;
  reference: Cost | null;
  /** Wall-clock and processor time of the reference over ours: above 1, ours is faster. */
  referenceOverChosen: { wall: number; cpu: number } | null;
  step: {
    clips: number;
    workers: number;
    /** One clip for each worker at once, decoded and resized through the pool of the training process, times clips over workers. */
    wallSeconds: number;
    cpuSeconds: number;
    shareOfStep: number;
    /** Longest time for which the main thread did not answer meanwhile. */
    mainThreadDelayMs: number;
  };
}

export async function run(options: VideoBenchOptions = {}) {
  const { folder = "cache/bench-video", repeats = 5, seconds = 180, stepSeconds = 4, workers = 2, out } = options;
  const { distances = [12, 48, 250, Number.POSITIVE_INFINITY], python = "python3", log = () => {} } = options;
  const [width, height] = options.size ?? [1920, 1080];
  const reference = findReference(python);
  const specs: ClipSpec[] = [
    ...distances.map((distance) => ({ width, height, seconds, distance })),
    { width: 640, height: 360, seconds: Math.min(60, seconds), distance: 48 },
    { width: 320, height: 240, seconds: Math.min(60, seconds), distance: 30 },
  ];
  const load = { start: loadavg()[0]!, end: 0 };
  const clips: ClipResult[] = [];
  for (const spec of specs) {
    const file = await render(folder, spec, log);
    clips.push(await measure(file, spec, { repeats, reference, workers, stepSeconds }));
    report(clips.at(-1)!, reference, log);
  }
  load.end = loadavg()[0]!;
  const result = {
    benchmark: "video" as const,
    machine: `${cpus()[0]?.model ?? "cpu"}, ${cpus().length} cores`,
    loadAverage: load,
    commit: commit(),
    node: process.version,
    ffmpeg: (await findFfmpeg()).version,
    reference: reference?.version ?? null,
    wanted: "16 frames",
    stepSeconds: { value: stepSeconds, meaning: "assumed time of a training step of 8 questions, not measured here" },
    clips,
  };
  if (out !== undefined) {
    mkdirSync(dirname(out), { recursive: true });
    writeFileSync(out, `${JSON.stringify(result, null, 2)}\n`);
  }
  return result;
}

/** Moving shapes with noise over them, so that decoding is no cheaper than with a camera's pictures; kept for the next run. */
async function render(folder: string, clip: ClipSpec, log: (line: string) => void): Promise<string> {
  const { width, height, seconds, distance } = clip;
  const file = join(folder, `${width}x${height}-${seconds}s-key${distance}.mp4`);
  if (existsSync(file)) return file;
  log(`rendering ${file}`);
  mkdirSync(folder, { recursive: true });
  const partial = join(folder, `partial-${process.pid}.mp4`);
  const gop = String(Number.isFinite(distance) ? distance : seconds * RATE + 1);
  await encodeWithFfmpeg([
    ...["-loglevel", "error", "-f", "lavfi"],
    ...["-i", `testsrc2=size=${width}x${height}:rate=${RATE}:duration=${seconds},noise=alls=6:allf=t`],
    ...["-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-g", gop, "-keyint_min", gop, "-sc_threshold", "0"],
    ...["-b:v", `${Math.round((width * height) / 296)}k`, "-pix_fmt", "yuv420p", partial],
  ]);
  renameSync(partial, file);
  return file;
}

async function measure(
  file: string,
  spec: ClipSpec,
  options: { repeats: number; reference: Reference | null; workers: number; stepSeconds: number },
): Promise<ClipResult> {
  const { repeats, reference, workers, stepSeconds } = options;
  const scanned = performance.now();
  const table = await scanPackets(file);
  const scanSeconds = (performance.now() - scanned) / 1000;
  const { indices, method } = await decodeVideo(file, RULE); // warms the page cache, too
  const plan = planDecoding(table, indices);
  const otherMethod = method === "seek" ? "pass" : "seek";
  const chosen: Sample[] = [];
  const other: Sample[] = [];
  const theirs: Sample[] = [];
  other.push(await timed(() => decodeVideo(file, RULE, { method: otherMethod })));
  for (let i = 0; i < repeats; i++) {
    chosen.push(await timed(() => decodeVideo(file, RULE)));
    if (reference) theirs.push(reference.time(file, indices));
    // Slow, and known to lose: its spread matters less.
    if (i > 0 && other[0]!.wallSeconds < SLOW)
      other.push(await timed(() => decodeVideo(file, RULE, { method: otherMethod })));
    if (i >= 2 && chosen[0]!.wallSeconds > SLOW) break;
  }
  const step = await timeStep(file, workers);
  const costs = { chosen: summarize(chosen), reference: theirs.length ? summarize(theirs) : null };
  const { distance, ...rest } = spec;
  return {
    ...rest,
    keyFrameDistance: Number.isFinite(distance) ? distance : "first frame only",
    megabytes: readFileSync(file).length / 1e6,
    scanSeconds,
    frames: indices.length,
    chosen: { method, ...costs.chosen, framesPerSecond: indices.length / costs.chosen.wallSeconds.median },
    other: { method: otherMethod, ...summarize(other) },
    plan: { pass: plan.pass, seek: plan.seek },
    reference: costs.reference,
    referenceOverChosen: costs.reference && {
      wall: costs.reference.wallSeconds.median / costs.chosen.wallSeconds.median,
      cpu: costs.reference.cpuSeconds.median / costs.chosen.cpuSeconds.median,
    },
    step: { ...step, shareOfStep: step.wallSeconds / stepSeconds },
  };
}

/** The media of one training step, through the pool of the training process, without its cache. */
async function timeStep(file: string, workers: number) {
  const pool = new MediaPool(workers);
  const request = { kind: "video", file, frames: RULE, size: SIZE, cache: null } as const;
  try {
    await Promise.all(
      Array.from({ length: workers }, () => pool.load({ ...request, file: "/nowhere" }).catch(() => {})),
    ); // start the threads
    const delay = monitorEventLoopDelay({ resolution: 5 });
    delay.enable();
    const sample = await timed(() => Promise.all(Array.from({ length: workers }, () => pool.load(request))));
    delay.disable();
    const rounds = CLIPS_PER_STEP / workers;
    return {
      clips: CLIPS_PER_STEP,
      workers,
      wallSeconds: sample.wallSeconds * rounds,
      cpuSeconds: sample.cpuSeconds * rounds,
      mainThreadDelayMs: delay.max / 1e6,
    };
  } finally {
    await pool.close();
  }
}

interface Sample {
  wallSeconds: number;
  cpuSeconds: number;
}

async function timed(work: () => Promise<unknown>): Promise<Sample> {
  const cpu = cpuSeconds();
  const start = performance.now();
  await work();
  return { wallSeconds: (performance.now() - start) / 1000, cpuSeconds: cpuSeconds() - cpu };
}

/** Of this process with its threads and of the processes that it started and that have ended, to the hundredth. Linux only. */
function cpuSeconds(): number {
  const fields = readFileSync("/proc/self/stat", "latin1")
    .replace(/^.*\) /, "")
    .split(" ");
  return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0) / 100; // user, system; the children's
}

function summarize(samples: readonly Sample[]): Cost {
  const spread = (values: number[]): Spread => {
    values.sort((a, b) => a - b);
    return { median: values[Math.floor(values.length / 2)]!, min: values[0]!, max: values.at(-1)! };
  };
  return {
    wallSeconds: spread(samples.map((sample) => sample.wallSeconds)),
    cpuSeconds: spread(samples.map((sample) => sample.cpuSeconds)),
    repeats: samples.length,
  };
}

interface Reference {
  version: string;
  time: (file: string, indices: readonly number[]) => Sample;
}

/** decord or PyAV in a Python process of its own, timed inside it (imports are not counted); null where Python has neither. */
function findReference(python: string): Reference | null {
  const call = (...args: string[]) => spawnSync(python, [REFERENCE, ...args], { encoding: "utf8" });
  const { status, stdout } = call();
  if (status !== 0) return null;
  return {
    version: stdout.trim(),
    time: (file, indices) => {
      const { status, stdout, stderr } = call(file, JSON.stringify(indices));
      if (status !== 0) throw new Error(`the reference cannot read ${file}: ${stderr}`);
      const { wallSeconds, cpuSeconds } = JSON.parse(stdout) as Sample;
      return { wallSeconds, cpuSeconds };
    },
  };
}

/** Of the clone; with a plus where files differ from it. */
function commit(): string {
  try {
    const git = (...args: string[]) =>
      execFileSync("git", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    return (
      git("rev-parse", "--short", "HEAD").trim() + (git("status", "--porcelain", "src/data", "bench").trim() ? "+" : "")
    );
  } catch {
    return "unknown";
  }
}

function report(clip: ClipResult, reference: Reference | null, log: (line: string) => void): void {
  const { width, height, seconds, keyFrameDistance: key, chosen, other, step } = clip;
  const show = (name: string, { wallSeconds: wall, cpuSeconds: cpu, repeats }: Cost) =>
    log(
      `  ${name.padEnd(16)} ${wall.median.toFixed(2)} s (${wall.min.toFixed(2)} to ${wall.max.toFixed(2)}, ${repeats} x), processor ${cpu.median.toFixed(2)} s`,
    );
  log(
    `${clip.frames} of ${seconds} s ${width}x${height}, key frame each ${key}; scan ${clip.scanSeconds.toFixed(2)} s`,
  );
  show(`${chosen.method} (chosen)`, chosen);
  show(other.method, other);
  if (clip.reference) show(reference!.version, clip.reference);
  log(
    `  expected processor time: pass ${clip.plan.pass.seconds.toFixed(2)} s, seek ${clip.plan.seek.seconds.toFixed(2)} s; ` +
      `a step's ${step.clips} clips with ${step.workers} workers ${step.wallSeconds.toFixed(2)} s (${(step.shareOfStep * 100).toFixed(0)} % of a step), ` +
      `processor ${step.cpuSeconds.toFixed(2)} s, main thread silent for at most ${step.mainThreadDelayMs.toFixed(0)} ms`,
  );
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const names = ["out", "folder", "python", "repeats", "seconds", "step-seconds", "workers"];
  const { values } = parseArgs({
    options: Object.fromEntries(names.map((name) => [name, { type: "string" as const }])),
  });
  const number = (name: string) => (values[name] === undefined ? undefined : Number(values[name]));
  await run({
    folder: values.folder,
    python: values.python,
    out: values.out,
    repeats: number("repeats"),
    seconds: number("seconds"),
    stepSeconds: number("step-seconds"),
    workers: number("workers"),
    log: (line) => process.stdout.write(`${line}\n`),
  } as VideoBenchOptions);
}
