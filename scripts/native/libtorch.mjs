/**
 * Finds libtorch, or installs it. No Python runs at train time; a PyTorch wheel is only the form in which libtorch is shipped.
 * Order: the folder LIBTORCH points to; the torch (2.11 to 2.13) that python3 would import; .libtorch/torch of an earlier install.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

export const root = resolve(fileURLToPath(import.meta.url), "../../..");
/** The version that installLibtorch fetches; the newest one the addon is tested with. */
export const WHEEL_VERSION = "2.13.0";
const SUPPORTED = /^2\.1[123]\./;

/**
 * @typedef {{ dir: string, version: string, cuda: boolean, source: "LIBTORCH" | "python3" | ".libtorch" }} Libtorch
 * `dir` holds include/ and lib/; `cuda` says whether lib/libtorch_cuda.so is there.
 */

/**
 * The libtorch to build against, or null where there is none.
 * @returns {Libtorch | null}
 * @throws {Error} LIBTORCH is set but does not point to a usable libtorch
 */
export function findLibtorch() {
  const named = process.env.LIBTORCH;
  if (named) {
    const found = inspect(named, "LIBTORCH") ?? inspect(join(named, "torch"), "LIBTORCH");
    if (!found) throw new Error(`LIBTORCH=${named} holds no libtorch: expected lib/libtorch.so and include/ATen in it`);
    if (!SUPPORTED.test(found.version)) {
      throw new Error(`LIBTORCH=${named} is torch ${found.version}; Grove needs 2.11 to 2.13`);
    }
    return found;
  }
  const installed = pythonTorch();
  if (installed) {
    const found = inspect(installed, "python3");
    if (found && SUPPORTED.test(found.version)) return found;
  }
  return inspect(join(root, ".libtorch", "torch"), ".libtorch");
}

/**
 * Puts torch's wheel into .libtorch/: without its dependencies, which are Python's, unless it is the CUDA build.
 * @param {(line: string) => void} log
 * @returns {Libtorch}
 * @throws {Error} one message that says what failed and what to do
 */
export function installLibtorch(log) {
  const target = join(root, ".libtorch");
  log(`installing torch ${WHEEL_VERSION} into .libtorch (a few hundred MB, once)`);
  const install = (/** @type {string[]} */ options) =>
    spawnSync("python3", ["-m", "pip", "install", ...options, "--target", target, `torch==${WHEEL_VERSION}`], {
      encoding: "utf8",
    });
  let pip = install(["--no-deps", "--upgrade"]);
  let found = pip.status === 0 ? inspect(join(target, "torch"), ".libtorch") : null;
  if (found?.cuda && !existsSync(join(target, "nvidia"))) {
    // PyPI's usual Linux wheel is the CUDA build: its libraries load only beside NVIDIA's, which are packages of their own.
    log("that is the CUDA build: installing the NVIDIA libraries it needs (several GB, once)");
    pip = install(["--upgrade"]);
    found = pip.status === 0 ? inspect(join(target, "torch"), ".libtorch") : null;
  }
  if (found) return found;
  const reason = pip.error
    ? "python3 was not found"
    : (pip.stderr
        .trim()
        .split("\n")
        .filter((line) => /error|no module/i.test(line))
        .pop() ?? `pip ended with status ${pip.status}`);
  throw new Error(
    `libtorch could not be installed: ${reason}\n` +
      `Install python3 with pip and run this again, or install torch ${WHEEL_VERSION} yourself, or set LIBTORCH to an unpacked libtorch 2.11 to 2.13.`,
  );
}

/** Where python3 would import torch from, without importing it (that takes seconds). @returns {string | null} */
function pythonTorch() {
  const code =
    "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s and s.submodule_search_locations else '')";
  const python = spawnSync("python3", ["-c", code], { encoding: "utf8" });
  const dir = python.status === 0 ? python.stdout.trim() : "";
  return dir === "" ? null : dir;
}

/** @param {string} dir @param {Libtorch["source"]} source @returns {Libtorch | null} */
function inspect(dir, source) {
  const full = resolve(dir);
  if (!existsSync(join(full, "lib", "libtorch.so")) || !existsSync(join(full, "include", "ATen"))) return null;
  const version = readVersion(full);
  if (version === null) return null;
  return { dir: full, version, cuda: existsSync(join(full, "lib", "libtorch_cuda.so")), source };
}

/** From torch/version.py of a wheel or build-version of a libtorch archive. @param {string} dir @returns {string | null} */
function readVersion(dir) {
  for (const [file, pattern] of /** @type {[string, RegExp][]} */ ([
    ["version.py", /__version__ = '([^']+)'/],
    ["build-version", /^(\S+)/],
  ])) {
    const path = join(dir, file);
    const match = existsSync(path) ? pattern.exec(readFileSync(path, "utf8")) : null;
    if (match?.[1]) return match[1];
  }
  return null;
}
