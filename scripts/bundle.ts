/**
 * `npm run bundle [-- --out folder] [--no-archive]`: Grove as one archive for a machine that has python3 with torch and g++, but no Node, npm or internet.
 * The bundle is this repository's own tree with the packages it runs on, a stripped node, a static ffmpeg and CUDA kernels compiled here
 * (where nvcc is found), so that paths, stack traces and TypeScript files are those of a clone. docs/air-gapped.md tells how to use it.
 */

import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { copyPackage, runtimePackages, sizeOf } from "./bundle/packages.ts";

const MIB = 2 ** 20;
const LIMIT_MIB = 55;
const root = fileURLToPath(new URL("..", import.meta.url)).replace(/\/$/, "");

/** The tree as it is; scripts without those that make a bundle. */
const TREE = [
  "src",
  "native",
  "configs",
  "test",
  "bench",
  "docs",
  "scripts",
  "tsconfig.json",
  "LICENSE",
  "README.md",
  "CHANGELOG.md",
];
const NOT_IN_TREE = [
  /\/scripts\/(bundle|bundle\.ts|onnxruntime-stub)$/,
  /\/docs\/results$/,
  /\.log$/,
  /\/__pycache__$/,
  /^(?!.*\/(scripts\/parity|src\/reward)\/).*\.py$/, // the other Python files make fixtures
];

const say = (line: string) => process.stdout.write(`${line}\n`);

async function makeBundle(out: string): Promise<void> {
  const name = `grove-${version()}-linux-x64`;
  const folder = path.join(out, name);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(path.join(folder, "bin"), { recursive: true });

  copyTree(folder);
  copyNode(path.join(folder, "bin/node"));
  const packages = runtimePackages(root);
  for (const entry of packages) copyPackage(root, folder, entry.path);
  await bundleTestRunner(folder);
  await copyKernels(folder);
  writeFileSync(
    path.join(folder, "package.json"),
    JSON.stringify({ name: "grove", version: version(), type: "module", private: true }, null, 2),
  );
  const notices = packages.map(
    (entry) => `${entry.path.slice("node_modules/".length)} ${entry.version}: ${entry.license}`,
  );
  writeFileSync(
    path.join(folder, "THIRD_PARTY.txt"),
    `Licence texts are in the packages' folders.\n${notices.join("\n")}\nnode ${process.version}: MIT\n`,
  );

  const commit = spawnSync("git", ["describe", "--always", "--dirty"], { cwd: root, encoding: "utf8" });
  if (commit.status === 0) writeFileSync(path.join(folder, "COMMIT"), commit.stdout);

  printSizes(folder);
  if (process.argv.includes("--no-archive")) return;
  const archive = compress(out, name);
  const size = statSync(archive).size / MIB;
  say(`${archive}: ${size.toFixed(1)} MiB`);
  if (size > LIMIT_MIB) throw new Error(`the archive is larger than ${LIMIT_MIB} MiB`);
}

function version(): string {
  return (JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as { version: string }).version;
}

function copyTree(folder: string): void {
  const filter = (file: string) => !NOT_IN_TREE.some((pattern) => pattern.test(file));
  for (const name of TREE) {
    if (existsSync(path.join(root, name)))
      cpSync(path.join(root, name), path.join(folder, name), { recursive: true, filter });
  }
  cpSync(path.join(root, "scripts/bundle/run.sh"), path.join(folder, "run.sh"));
  chmodSync(path.join(folder, "run.sh"), 0o755);
}

/** This very node without its symbols: about 12 MB less. */
function copyNode(target: string): void {
  cpSync(process.execPath, target, { dereference: true });
  if (spawnSync("strip", [target]).status !== 0) say("strip was not found: node is bundled with its symbols");
}

async function bundleTestRunner(folder: string): Promise<void> {
  const outdir = path.join(folder, "node_modules/vitest");
  const source = (name: string) => path.join(root, "scripts/bundle", `${name}.ts`);
  await build({
    entryPoints: { index: source("vitest-shim"), selftest: source("selftest") },
    outdir,
    bundle: true,
    splitting: true,
    minify: true,
    format: "esm",
    platform: "node",
    target: "node20",
    logLevel: "warning",
  });
  writeFileSync(
    path.join(outdir, "package.json"),
    JSON.stringify({ name: "vitest", type: "module", exports: "./index.js" }),
  );
}

async function copyKernels(folder: string): Promise<void> {
  const { buildKernels } = (await import(new URL("native/build.mjs", import.meta.url).href)) as {
    buildKernels(options: { log: (line: string) => void }): Promise<string | null>;
  };
  const library = await buildKernels({ log: say });
  if (library === null) say("no nvcc here: the bundle's machine compiles the CUDA kernels itself, if it has nvcc");
  else cpSync(library, path.join(folder, "build/kernels/libgrove_kernels.so"));
}

function printSizes(folder: string): void {
  const list = (at: string) => readdirSync(at);
  const parts: [string, string][] = [
    ["node", "bin"],
    ["ffmpeg", "node_modules/@ffmpeg-installer"],
    ["sharp and libvips", "node_modules/@img"],
    ["esbuild (for tsx)", "node_modules/@esbuild"],
    ["kernels", "build"],
    ["sources", "src"],
    ["tests", "test"],
  ];
  const sized = parts
    .filter(([, at]) => existsSync(path.join(folder, at)))
    .map(([part, at]) => ({ part, bytes: sizeOf(path.join(folder, at), list) }));
  const rest = sizeOf(folder, list) - sized.reduce((sum, { bytes }) => sum + bytes, 0);
  for (const { part, bytes } of [...sized, { part: "other packages and files", bytes: rest }]) {
    say(`  ${part.padEnd(26)} ${(bytes / MIB).toFixed(1).padStart(6)} MiB`);
  }
}

/** tar and xz at its hardest, with the filter for machine code; python3's lzma where there is no xz program. */
function compress(out: string, name: string): string {
  say("compressing (this takes some minutes)");
  const tar = path.join(out, `${name}.tar`);
  const archive = `${tar}.xz`;
  rmSync(archive, { force: true });
  run("tar", ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-cf", tar, "-C", out, name]);
  if (spawnSync("xz", ["--version"]).status === 0) run("xz", ["--x86", "--lzma2=preset=9e,dict=128MiB", tar]);
  else run("python3", ["-c", PYTHON_XZ, tar, archive]);
  rmSync(tar, { force: true });
  return archive;
}

const PYTHON_XZ = `import lzma, shutil, sys
filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 27}]
with open(sys.argv[1], "rb") as source, lzma.open(sys.argv[2], "wb", filters=filters) as target:
    shutil.copyfileobj(source, target, 1 << 20)`;

function run(program: string, args: string[]): void {
  const { status, error, stderr } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${program} failed: ${error?.message ?? stderr}`);
}

const outAt = process.argv.indexOf("--out");
try {
  await makeBundle(path.resolve(outAt < 0 ? path.join(root, "dist") : (process.argv[outAt + 1] ?? "dist")));
} catch (error) {
  process.stderr.write(`the bundle was not made: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
