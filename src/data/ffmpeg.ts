/**
 * The only door to ffmpeg, and the only file that knows fluent-ffmpeg: finds a binary, runs it on one input, collects what it writes.
 * fluent-ffmpeg is archived, so everything it does for us fits on this page and could be a plain spawn.
 */

import { execFile } from "node:child_process";
import { accessSync, chmodSync, constants } from "node:fs";
import { access } from "node:fs/promises";
import { createRequire } from "node:module";
import { delimiter, dirname, join } from "node:path";
import { Writable } from "node:stream";
import { promisify } from "node:util";
import ffmpegCommand from "fluent-ffmpeg";
import { GroveError, MediaError } from "../errors.ts";

/** An ffmpeg that answered `-version`. */
export interface FfmpegBinary {
  path: string;
  /** First line of `-version`. */
  version: string;
  /** Output flags that keep every frame with its own time stamp: `-vsync` until 5.0, `-fps_mode` from 5.1 on. */
  passthrough: readonly string[];
}

export interface FfmpegRun {
  stdout: Buffer;
  /** Log lines of ffmpeg at level info. */
  stderr: string;
}

/** A decode that takes longer is taken for hung. */
export const FFMPEG_TIMEOUT_MS = 180_000;

const STDERR_TAIL_LINES = 12;
let found: Promise<FfmpegBinary> | undefined;

/** The ffmpeg of FFMPEG_PATH, else the first on PATH, else the one that ships in an npm package. Looked up once a process. */
export function findFfmpeg(): Promise<FfmpegBinary> {
  found ??= probeCandidates();
  return found;
}

/**
 * Runs `ffmpeg <inputOptions> -i <file> <outputOptions> pipe:1` and returns what it wrote.
 *
 * @throws MediaError naming the file, with the tail of ffmpeg's log, when the file is missing, ffmpeg fails or `timeoutMs` pass.
 */
export async function runFfmpeg(
  file: string,
  options: { input: readonly string[]; output: readonly string[]; timeoutMs?: number },
): Promise<FfmpegRun> {
  const binary = await findFfmpeg();
  await access(file, constants.R_OK).catch((cause) => {
    throw new MediaError(file, cause.code === "ENOENT" ? "no such file" : "cannot be read", {}, cause);
  });
  const timeoutMs = options.timeoutMs ?? FFMPEG_TIMEOUT_MS;
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let log: string | null = null; // set when ffmpeg has ended well
    let drained = false;
    const settle = () => {
      if (log !== null && drained) resolve({ stdout: Buffer.concat(chunks), stderr: log });
    };
    // fluent-ffmpeg kills a process that outlives its output's "close" by 20 ms, which a busy machine does to healthy ones: so no "close".
    // And it reports the process's end, which may come before the last of its output.
    const output = new Writable({
      emitClose: false,
      autoDestroy: false,
      write: (chunk: Buffer, _encoding, done) => {
        chunks.push(chunk);
        done();
      },
      final: (done) => {
        drained = true;
        settle();
        done();
      },
    });
    // `file:` keeps ffmpeg from reading a colon in the name as a protocol; stdoutLines 0 keeps the whole log.
    const command = ffmpegCommand({ source: `file:${file}`, stdoutLines: 0, timeout: timeoutMs / 1000 })
      .setFfmpegPath(binary.path)
      .inputOptions(["-hide_banner", "-nostdin", ...options.input])
      .outputOptions([...options.output]);
    command.on("error", (cause: Error, _stdout: string | null, stderr: string | null) => {
      const lines = tail(stderr ?? "");
      const timedOut = /timeout/i.test(cause.message);
      const codec = missingDecoder(stderr ?? "");
      const problem = timedOut
        ? `ffmpeg took longer than ${timeoutMs / 1000} s`
        : codec !== undefined
          ? `this ffmpeg has no decoder for its codec ${codec}; install a newer one or set FFMPEG_PATH (${binary.path}, ${binary.version})`
          : `ffmpeg cannot read it`;
      reject(new MediaError(file, lines === "" ? `${problem}: ${cause.message}` : `${problem}\n${lines}`, {}, cause));
    });
    command.on("end", (_stdout: string | null, stderr: string | null) => {
      log = stderr ?? "";
      settle();
    });
    command.pipe(output);
  });
}

/** The codec that an ffmpeg's log says it cannot decode: its name, or its four characters where ffmpeg has not even a name for it. */
export function missingDecoder(log: string): string | undefined {
  const name = /Decoder \(codec (\S+)\) not found|no decoder found for: (\S+)/.exec(log);
  const unnamed = /Video: none \((\S+) \//.exec(log)?.[1] ?? /Unknown: none \((\S+) \//.exec(log)?.[1];
  if (!name) return /matches no streams/.test(log) ? unnamed : undefined;
  const codec = name[1] ?? name[2];
  return codec === "none" || codec === "unknown" ? (unnamed ?? codec) : codec;
}

/** Encodes raw frames or a lavfi source to a file: what `inputOptions -i input` gives, written to `output`. */
export async function encodeWithFfmpeg(args: readonly string[], stdin?: Uint8Array): Promise<void> {
  const { path } = await findFfmpeg();
  const hint = "npm run doctor shows which ffmpeg is used, and how much room the disk has";
  await new Promise<void>((resolve, reject) => {
    const child = execFile(
      path,
      ["-hide_banner", "-nostdin", "-y", ...args],
      { maxBuffer: 1 << 26 },
      (cause, _, stderr) => {
        if (cause === null) resolve();
        else reject(new MediaError(args.at(-1) ?? "", `ffmpeg cannot write it\n${tail(stderr)}`, { hint }, cause));
      },
    );
    child.stdin?.on("error", () => {}); // a broken pipe shows as ffmpeg's own exit status
    child.stdin?.end(stdin);
  });
}

async function probeCandidates(): Promise<FfmpegBinary> {
  const tried: string[] = [];
  for (const path of candidates()) {
    try {
      const { stdout } = await promisify(execFile)(path, ["-version"], { timeout: 20_000 });
      return { path, version: stdout.split("\n", 1)[0] ?? "", passthrough: passthroughFlags(stdout) };
    } catch (cause) {
      tried.push(`${path} (${(cause as NodeJS.ErrnoException).code ?? "failed"})`);
      if (path === process.env.FFMPEG_PATH) break; // a wrong FFMPEG_PATH is an error, not a reason to use another binary
    }
  }
  throw new GroveError(
    "FFMPEG",
    `no ffmpeg found; tried ${tried.join(", ") || "PATH"}. Install one (apt-get install ffmpeg) or set FFMPEG_PATH`,
    { tried },
  );
}

function* candidates(): Generator<string> {
  if (process.env.FFMPEG_PATH) yield process.env.FFMPEG_PATH;
  for (const folder of (process.env.PATH ?? "").split(delimiter)) {
    const path = join(folder, "ffmpeg");
    if (folder !== "" && isExecutable(path)) yield path;
  }
  try {
    const packaged = createRequire(import.meta.url).resolve("@ffmpeg-installer/linux-x64/package.json");
    const path = join(dirname(packaged), "ffmpeg");
    if (!isExecutable(path)) chmodSync(path, 0o755); // its postinstall does this; installs without scripts do not
    yield path;
  } catch {
    // not installed: an optional dependency for other platforms
  }
}

/** The library version tells what the release name cannot: distributions and nightly builds write anything there. */
function passthroughFlags(versionText: string): string[] {
  const match = /libavutil\s+(\d+)\.\s*(\d+)\./.exec(versionText);
  const major = Number(match?.[1] ?? 0);
  const minor = Number(match?.[2] ?? 0);
  return major > 57 || (major === 57 && minor >= 28) ? ["-fps_mode", "passthrough"] : ["-vsync", "passthrough"];
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

function tail(log: string): string {
  return log.trimEnd().split("\n").slice(-STDERR_TAIL_LINES).join("\n");
}
