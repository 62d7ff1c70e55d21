/**
 * Builds the addon (native/*.cc) with g++ against the libtorch found, and the CUDA kernels (native/kernels/*.cu) with nvcc where there
 * is one. Everything is keyed by content: build/native/<torch>-<cpu|cu>-<hash>/grove.node. A second run only looks.
 * Runnable: `node scripts/native/build.mjs [--force]`.
 */
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { findLibtorch, installLibtorch, root } from "./libtorch.mjs";

const nativeDir = join(root, "native");
const buildDir = join(root, "build", "native");

/**
 * Builds what is missing and returns the path of grove.node. build/native/current.json names it for src/torch/addon.ts.
 * @param {{ log?: (line: string) => void, force?: boolean }} [options]
 * @returns {Promise<string>}
 * @throws {Error} with one clear message: no libtorch, no compiler, or the compiler's errors
 */
export async function buildNative({ log = () => {}, force = false } = {}) {
  let torch = findLibtorch();
  if (torch === null) {
    requireCompiler(); // before some hundred MB are fetched that nothing could be built against
    torch = installLibtorch(log);
  }
  const sources = filesIn(nativeDir, ".cc");
  const headers = filesIn(nativeDir, ".h");
  const flags = compilerFlags(torch);
  const headerHash = hash([
    ...headers.map((file) => readFileSync(join(nativeDir, file), "utf8")),
    ...flags,
    torch.version,
  ]);
  const objects = sources.map((file) => ({
    file,
    key: hash([headerHash, readFileSync(join(nativeDir, file), "utf8")]),
  }));
  const links = linkerFlags(torch);
  const kind = `${torch.version.replace(/\+.*/, "")}-${torch.cuda ? "cu" : "cpu"}`;
  const folder = join(buildDir, `${kind}-${hash([...objects.flatMap((o) => [o.file, o.key]), ...links])}`);
  const addon = join(folder, "grove.node");
  if (force || !existsSync(addon)) {
    requireCompiler();
    const objectDir = join(buildDir, "objects");
    mkdirSync(objectDir, { recursive: true });
    mkdirSync(folder, { recursive: true });
    const todo = objects.filter(({ file, key }) => force || !existsSync(objectPath(objectDir, file, key)));
    log(
      `building the addon against torch ${torch.version} (${torch.source}): ${todo.length} of ${objects.length} files to compile`,
    );
    await inParallel(todo, async ({ file, key }) => {
      const target = objectPath(objectDir, file, key);
      await compileTo(target, (temporary) => ["g++", [...flags, "-c", join(nativeDir, file), "-o", temporary]]);
      log(`  compiled ${file}`);
    });
    const inputs = objects.map(({ file, key }) => objectPath(objectDir, file, key));
    await compileTo(addon, (temporary) => ["g++", ["-shared", "-o", temporary, ...inputs, ...links]]);
  }
  const kernels = torch.cuda || process.env.GROVE_BUILD_KERNELS ? await buildKernels({ log, force }) : null;
  writeCurrent({ addon, kernels, torch });
  return addon;
}

/**
 * Compiles native/kernels/*.cu into one library without torch in it, for sm_80 and sm_90a.
 * @param {{ log?: (line: string) => void, force?: boolean }} [options]
 * @returns {Promise<string | null>} null where there is no nvcc and no prebuilt library
 */
export async function buildKernels({ log = () => {}, force = false } = {}) {
  const prebuilt = [process.env.GROVE_KERNELS, join(root, "build", "kernels", "libgrove_kernels.so")];
  for (const path of prebuilt) if (path && existsSync(path)) return path;
  const nvcc = ["nvcc", "/usr/local/cuda/bin/nvcc"].find((path) => spawnSync(path, ["--version"]).status === 0);
  const dir = join(nativeDir, "kernels");
  const sources = existsSync(dir) ? filesIn(dir, ".cu") : [];
  if (!nvcc || sources.length === 0) return null;
  const flags = [
    "-O3",
    "-std=c++17",
    "-Xcompiler",
    "-fPIC",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
  ];
  const shared = ["../adamw_element.h", "../kernels.h"]; // what kernels include of the addon's headers
  const texts = [...filesIn(dir, ".cuh"), ...sources, ...shared].map((file) => readFileSync(join(dir, file), "utf8"));
  const library = join(root, "build", "kernels", hash([...flags, ...texts]), "libgrove_kernels.so");
  if (force || !existsSync(library)) {
    log(`compiling ${sources.length} CUDA kernel file(s)`);
    mkdirSync(dirname(library), { recursive: true });
    await compileTo(library, (temporary) => [
      nvcc,
      [...flags, "-shared", "-o", temporary, ...sources.map((file) => join(dir, file))],
    ]);
  }
  return library;
}

/** @param {import("./libtorch.mjs").Libtorch} torch */
function compilerFlags(torch) {
  const include = join(torch.dir, "include");
  return [
    "-O2",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fopenmp",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-DNODE_GYP_MODULE_NAME=grove",
    ...(torch.cuda ? ["-DGROVE_CUDA", ...[cudaInclude(torch), ...ncclInclude(torch)].flatMap(system)] : []),
    "-isystem",
    join(dirname(createRequire(import.meta.url).resolve("node-api-headers/package.json")), "include"),
    "-isystem",
    include,
    "-isystem",
    join(include, "torch", "csrc", "api", "include"),
  ];
}

/** @param {import("./libtorch.mjs").Libtorch} torch */
function linkerFlags(torch) {
  const lib = join(torch.dir, "lib");
  // libtorch brings its own OpenMP runtime: linking g++'s would make two thread pools, so -fopenmp is not passed here.
  return [
    `-L${lib}`,
    `-Wl,-rpath,${lib}`,
    "-Wl,--no-as-needed",
    "-ltorch",
    "-ltorch_cpu",
    "-lc10",
    ...(torch.cuda ? ["-ltorch_cuda", "-lc10_cuda"] : []),
  ];
}

/** Folder with cuda_runtime_api.h: a toolkit, or the headers that torch's own CUDA wheels bring. @param {import("./libtorch.mjs").Libtorch} torch */
function cudaInclude(torch) {
  const candidates = [
    process.env.CUDA_HOME && join(process.env.CUDA_HOME, "include"),
    "/usr/local/cuda/include",
    join(torch.dir, "..", "nvidia", "cu13", "include"),
    join(torch.dir, "..", "nvidia", "cuda_runtime", "include"),
  ];
  const found = candidates.find((path) => path && existsSync(join(path, "cuda_runtime_api.h")));
  if (!found)
    throw new Error("the CUDA headers were not found (cuda_runtime_api.h); install the CUDA toolkit or set CUDA_HOME");
  return found;
}

/**
 * Folder with nccl.h; [] where only the system's folders can have it. The one that came with torch's CUDA wheels first: c10d's classes have another
 * layout with another NCCL. @param {import("./libtorch.mjs").Libtorch} torch
 */
function ncclInclude(torch) {
  const candidates = [
    join(torch.dir, "..", "nvidia", "nccl", "include"),
    process.env.NCCL_HOME && join(process.env.NCCL_HOME, "include"),
  ];
  return candidates.filter((path) => path && existsSync(join(path, "nccl.h"))).slice(0, 1);
}

/** @param {string} path */
const system = (path) => ["-isystem", path];

/** @param {{ addon: string, kernels: string | null, torch: import("./libtorch.mjs").Libtorch }} state */
function writeCurrent(state) {
  const path = join(buildDir, "current.json");
  const text = `${JSON.stringify(state, null, 2)}\n`;
  if (existsSync(path) && readFileSync(path, "utf8") === text) return;
  writeFileSync(`${path}.${process.pid}`, text);
  renameSync(`${path}.${process.pid}`, path);
}

/**
 * Runs a compiler into a temporary name and renames, so that an interrupted or parallel build never leaves a broken file.
 * @param {string} target @param {(temporary: string) => [string, string[]]} command
 */
async function compileTo(target, command) {
  const temporary = `${target}.${process.pid}.tmp`;
  const [program, args] = command(temporary);
  const { status, output } = await run(program, args);
  if (status !== 0) {
    rmSync(temporary, { force: true });
    throw new Error(`${program} failed (status ${status}):\n${output.split("\n").slice(0, 60).join("\n")}`);
  }
  renameSync(temporary, target);
}

/** @param {string} program @param {string[]} args @returns {Promise<{ status: number | null, output: string }>} */
function run(program, args) {
  return new Promise((done) => {
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    child.stdout.on("data", (chunk) => {
      output += chunk;
    });
    child.stderr.on("data", (chunk) => {
      output += chunk;
    });
    child.on("error", (error) => done({ status: -1, output: error.message }));
    child.on("close", (status) => done({ status, output }));
  });
}

/** @template T @param {T[]} items @param {(item: T) => Promise<void>} work */
async function inParallel(items, work) {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item);
  };
  await Promise.all(Array.from({ length: Math.min(availableParallelism(), items.length) }, worker));
}

function requireCompiler() {
  if (spawnSync("g++", ["--version"]).status === 0) return;
  throw new Error(
    "no C++ compiler: g++ was not found. Install it (Debian, Ubuntu: `apt-get install g++`; Fedora: `dnf install gcc-c++`) and run this again.",
  );
}

/** @param {string} dir @param {string} file @param {string} key */
const objectPath = (dir, file, key) => join(dir, `${file.replace(/\.cc$/, "")}-${key}.o`);

/** @param {string} dir @param {string} ending */
const filesIn = (dir, ending) =>
  readdirSync(dir)
    .filter((file) => file.endsWith(ending))
    .sort();

/** @param {string[]} parts */
const hash = (parts) => createHash("sha256").update(parts.join("\0")).digest("hex").slice(0, 16);

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    // biome-ignore lint/suspicious/noConsole: a command-line tool
    console.log(await buildNative({ log: console.log, force: process.argv.includes("--force") }));
  } catch (error) {
    // biome-ignore lint/suspicious/noConsole: a command-line tool
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  }
}
