/** Finds the programs that Grove calls. Plain Node: it must run before `npm install`. */

import { spawnSync } from "node:child_process";
import { accessSync, chmodSync, constants, existsSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

/** The repository's (or the bundle's) top folder. */
export const root = fileURLToPath(new URL("../..", import.meta.url)).replace(/\/$/, "");

/** The full path of a program on PATH, or undefined. */
export function which(name) {
  for (const folder of (process.env.PATH ?? "").split(path.delimiter)) {
    const file = path.join(folder, name);
    if (folder !== "" && isExecutable(file)) return file;
  }
  return undefined;
}

/** A program's standard output (trimmed), or undefined when it cannot be run, fails or takes longer than `timeoutMs`. */
export function output(program, args, timeoutMs = 20_000) {
  const result = spawnSync(program, args, { encoding: "utf8", timeout: timeoutMs });
  return result.status === 0 ? result.stdout.trim() : undefined;
}

/** The first thing that looks like a version number in the output of `program args`. */
export function versionOf(program, args = ["--version"], pattern = /(\d+\.\d+[.\w+-]*)/) {
  const text = output(program, args);
  return text === undefined ? undefined : (pattern.exec(text)?.[1] ?? "unknown");
}

/**
 * The ffmpeg that Grove will call (src/data/ffmpeg.ts), and where it was found: what the variable FFMPEG_PATH names, whether it runs or
 * not, else PATH, then the binary in the npm package @ffmpeg-installer/linux-x64 (made executable here, since npm may have been told to
 * run no scripts).
 * @returns {{ path: string, source: string } | undefined}
 */
export function findFfmpeg() {
  const named = process.env.FFMPEG_PATH;
  if (named) return { path: named, source: "FFMPEG_PATH" };
  const system = which("ffmpeg");
  if (system !== undefined) return { path: system, source: "PATH" };
  const packaged = path.join(root, `node_modules/@ffmpeg-installer/${process.platform}-${process.arch}/ffmpeg`);
  if (!existsSync(packaged)) return undefined;
  if (!isExecutable(packaged)) {
    try {
      chmodSync(packaged, 0o755);
    } catch {
      return undefined; // a read-only folder of another user
    }
  }
  return { path: packaged, source: "npm package" };
}

function isExecutable(file) {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
