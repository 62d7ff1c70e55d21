/**
 * Makes a clone ready to run: npm packages, libtorch, the native addon, ffmpeg. Plain Node without packages, since it runs first.
 * Usage: node scripts/setup.mjs [--quiet] [--force]
 *   --quiet  print nothing when everything is in place already     --force  do every step again
 * When nothing has changed since the last set-up (build/setup.json), it returns at once.
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, realpathSync, renameSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { fingerprint } from "./lib/fingerprint.mjs";
import { withLock } from "./lib/lock.mjs";
import { describeProblem, SetupProblem } from "./lib/problem.mjs";
import { findFfmpeg, root } from "./lib/tools.mjs";

const NODE_NEEDED = [20, 19];
const stampFile = path.join(root, "build/setup.json");

/**
 * Brings everything in place; returns at once when the stamp says that it is.
 * @param {{ log: (line: string) => void, quiet?: boolean, force?: boolean }} options
 */
export async function setup({ log, quiet = false, force = false }) {
  checkNode(process.versions.node);
  if (!force && isReady() && (quiet || (await isSameLibtorch()))) {
    if (!quiet) log("everything is in place already (node scripts/setup.mjs --force does it again)");
    return;
  }
  const onWait = (pid) => log(`another set-up is running here (process ${pid}); waiting for it`);
  const work = () => (quiet && !force && isReady() ? undefined : runSteps(log, force));
  await withLock(path.join(root, "build/setup.lock"), work, { onWait });
}

async function runSteps(log, force) {
  installPackages(log, force);

  // Loaded only now: these need the npm packages.
  const { findLibtorch, installLibtorch } = await import("./native/libtorch.mjs");
  const { buildNative } = await import("./native/build.mjs");
  const libtorch = await asProblem(() => findLibtorch() ?? installLibtorch(log));
  log(
    `libtorch: ${libtorch.version} with ${libtorch.cuda ? "CUDA" : "CPU only"} in ${libtorch.dir} (found by ${libtorch.source})`,
  );
  const addon = await asProblem(() => buildNative({ log, force }));
  log(`addon: ${path.relative(root, addon)}`);

  const ffmpeg = findFfmpeg();
  if (ffmpeg === undefined) log("ffmpeg: none found, so videos cannot be read; to mend it: apt-get install -y ffmpeg");
  else log(`ffmpeg: ${ffmpeg.path} (${ffmpeg.source})`);

  const watched = [addon, libraryOf(libtorch)];
  mkdirSync(path.dirname(stampFile), { recursive: true });
  writeFileSync(`${stampFile}.tmp`, JSON.stringify({ watched, state: currentState(watched) }));
  renameSync(`${stampFile}.tmp`, stampFile);
  log("set-up is complete");
}

/** True when nothing that set-up depends on has changed since it last finished. */
function isReady() {
  try {
    const { watched, state } = JSON.parse(readFileSync(stampFile, "utf8"));
    return !state.includes(" missing") && state === currentState(watched);
  } catch {
    return false; // no stamp yet, or a damaged one
  }
}

/**
 * Whether the libtorch that would be chosen now is the one in use: a torch may have been installed since. Asks python3, so the silent
 * check before every command does without it.
 */
async function isSameLibtorch() {
  const { findLibtorch } = await import("./native/libtorch.mjs");
  const found = await asProblem(findLibtorch);
  const { watched } = JSON.parse(readFileSync(stampFile, "utf8"));
  return found === null || watched.includes(libraryOf(found));
}

function libraryOf(libtorch) {
  return path.join(libtorch.dir, "lib/libtorch_cpu.so");
}

/** What set-up depends on: this Node, the environment, the packages, the C++ sources, and (watched) what it produced. */
function currentState(watched) {
  const { LIBTORCH, VIRTUAL_ENV, CONDA_PREFIX } = process.env;
  const settings = [process.version, process.arch, LIBTORCH, VIRTUAL_ENV, CONDA_PREFIX].map(String).join(" ");
  const inputs = ["native", "scripts/native"].map((name) => path.join(root, name));
  const packages = usesNpm()
    ? ["package-lock.json", "node_modules/.package-lock.json"].map((name) => path.join(root, name))
    : [];
  return `${settings}\n${fingerprint([...inputs, ...packages, ...watched])}`;
}

/** False in a bundle, whose packages are part of it. */
function usesNpm() {
  return existsSync(path.join(root, "package-lock.json"));
}

function installPackages(log, force) {
  if (!usesNpm() || (!force && packagesMatchLock())) return;
  log("npm packages: installing what package-lock.json lists (npm ci)");
  const npmScript = process.env.npm_execpath;
  const [program, first] = npmScript?.endsWith(".js") ? [process.execPath, [npmScript]] : ["npm", []];
  // With the development packages also where NODE_ENV or npm's settings leave them out: the build and the tests need them.
  const npm = spawnSync(program, [...first, "ci", "--include=dev", "--no-audit", "--no-fund", "--loglevel=error"], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, ONNXRUNTIME_NODE_INSTALL: "skip" },
  });
  if (npm.error !== undefined)
    throw new SetupProblem("npm was not found", "install Node.js 20.19 or newer together with npm");
  if (npm.status !== 0) throw new SetupProblem(npmFailure(npm.stderr), "npm ci   (then run this again)");
  writeFileSync(path.join(root, "node_modules/.grove-lock"), lockHash());
}

/** The packages belong to the lock file: by the hash written after our own install, or because npm installed later than it changed. */
function packagesMatchLock() {
  const installed = path.join(root, "node_modules/.package-lock.json");
  const marker = path.join(root, "node_modules/.grove-lock");
  if (!existsSync(installed)) return false;
  if (existsSync(marker) && readFileSync(marker, "utf8") === lockHash()) return true;
  return statSync(installed).mtimeMs >= statSync(path.join(root, "package-lock.json")).mtimeMs;
}

function lockHash() {
  return createHash("sha256")
    .update(readFileSync(path.join(root, "package-lock.json")))
    .digest("hex");
}

/** What npm said, without its advice about log files. */
export function npmFailure(stderr) {
  const lines = stderr
    .split("\n")
    .map((line) => line.replace(/^npm (error|ERR!) ?/, "").trim())
    .filter((line) => line !== "" && !/^(npm warn|A complete log|(code|syscall|errno|at|type|stack) )/.test(line));
  const network = /ENOTFOUND|ETIMEDOUT|ECONNREFUSED|ECONNRESET|EAI_AGAIN|network/.test(stderr);
  return `npm ci failed${network ? " (the npm registry could not be reached)" : ""}: ${lines.slice(0, 4).join("; ") || "no message"}`;
}

/** @throws SetupProblem when this Node is older than package.json's engines ask for */
export function checkNode(version) {
  const [major, minor] = version.split(".").map(Number);
  if (major > NODE_NEEDED[0] || (major === NODE_NEEDED[0] && minor >= NODE_NEEDED[1])) return;
  throw new SetupProblem(`Node ${version} is too old`, `install Node.js ${NODE_NEEDED.join(".")} or newer`);
}

/** The native scripts say what is wrong and how to mend it in a plain Error; system errors keep their stack. */
async function asProblem(work) {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Error && error.constructor === Error && error.code === undefined)
      throw new SetupProblem(error.message);
    throw error;
  }
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const quiet = process.argv.includes("--quiet");
  const log = (line) => process.stderr.write(`${line}\n`);
  try {
    await setup({ log, quiet, force: process.argv.includes("--force") });
  } catch (error) {
    log(describeProblem(error));
    process.exitCode = 1;
  }
}
