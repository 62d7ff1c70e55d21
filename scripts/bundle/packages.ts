/** Which npm packages, and which of their files, a program needs to run. */

import { cpSync, existsSync, readFileSync, statSync } from "node:fs";
import path from "node:path";

interface LockFile {
  packages: Record<string, { dev?: boolean; devOptional?: boolean; license?: string; version?: string }>;
}

/** Needed by the build of the addon, although it is listed for development. */
const EXTRA = ["node_modules/node-api-headers"];

/** Folders and files that no program reads. */
const UNUSED = [
  /\.(map|md|markdown|d\.ts|d\.mts|d\.cts|flow|tsbuildinfo)$/,
  /node_modules\/(@[^/]+\/)?[^/]+\/(tests?|__tests__|docs?|examples?|benchmarks?|\.github|coverage|man)$/,
  /node_modules\/zod\/src$/,
  /node_modules\/fluent-ffmpeg\/(tools|OLD)$/,
  /node_modules\/@huggingface\/transformers\/(src|types)$/,
  /node_modules\/mathjs\/(lib\/(browser|cjs)|types)$/,
  /node_modules\/@huggingface\/transformers\/dist\/(?!transformers\.node\.mjs$)/,
];
const KEEP = /(licen[cs]e|notice|copying)/i;

export interface PackageEntry {
  path: string;
  license: string;
  version: string;
}

/** Folders (below `root`) of the packages that the program needs at run time and that are installed here. */
export function runtimePackages(root: string): PackageEntry[] {
  const lock = JSON.parse(readFileSync(path.join(root, "package-lock.json"), "utf8")) as LockFile;
  return Object.entries(lock.packages)
    .filter(([name, { dev }]) => name.startsWith("node_modules/") && (!dev || EXTRA.includes(name)))
    .filter(([name]) => existsSync(path.join(root, name)))
    .map(([name, { license, version }]) => ({ path: name, license: license ?? "see package", version: version ?? "" }));
}

/** Copies one package without the files that are not needed and without packages nested in it (they have entries of their own). */
export function copyPackage(root: string, out: string, name: string): void {
  const source = path.join(root, name);
  cpSync(source, path.join(out, name), {
    recursive: true,
    dereference: true,
    filter: (file) => file === source || (!isNested(source, file) && isNeeded(file)),
  });
}

function isNested(source: string, file: string): boolean {
  return path.relative(source, file).split(path.sep)[0] === "node_modules";
}

/** Whether a file or folder of a package is needed when the program runs. */
export function isNeeded(file: string): boolean {
  if (KEEP.test(path.basename(file))) return true;
  return !UNUSED.some((pattern) => pattern.test(file));
}

/** Bytes of a file, or of all files in a folder. */
export function sizeOf(file: string, list: (folder: string) => string[]): number {
  const stat = statSync(file);
  return stat.isDirectory()
    ? list(file).reduce((sum, name) => sum + sizeOf(path.join(file, name), list), 0)
    : stat.size;
}
