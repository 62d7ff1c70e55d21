/**
 * Prints what this machine has, what is missing, and the command that mends it. Plain Node without packages: it also works before
 * `npm install`. Ends with status 1 when something is missing that every run needs. With arguments it is the command `doctor` of
 * src/cli, which also checks the files that a config names.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, statfsSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { findFfmpeg, output, root, versionOf, which } from "./lib/tools.mjs";
import { checkNode } from "./setup.mjs";

/**
 * @typedef {{ name: string, state: "ok" | "note" | "missing", text: string, remedy?: string }} Finding
 * note: fine to be without, with a consequence; missing: nothing runs without it
 */

const GIB = 2 ** 30;
/** A bundle has its packages in it, and no lock file. */
const isBundle = !existsSync(path.join(root, "package-lock.json"));
const SET_UP = isBundle ? "./run.sh setup" : "npm run setup";

/** @returns {Promise<Finding[]>} */
export async function examine() {
  const libtorch = await findLibtorch();
  return [
    examineNode(),
    examinePackages(),
    libtorch.finding,
    examineAddon(libtorch.found),
    ...examineGpus(libtorch.found),
    examineTool(
      "nvcc",
      "nvcc",
      "note",
      "none: without it the CUDA kernels of our own are not built, and CUDA runs slower",
      "install the CUDA toolkit",
    ),
    examineTool("compiler", "g++", "missing", "no g++", "apt-get install -y g++"),
    examineTool(
      "python3",
      "python3",
      "note",
      "none: it is needed only to find or install libtorch",
      "apt-get install -y python3-pip",
    ),
    examineFfmpeg(),
    examineMemory(),
    examineDisk(),
  ];
}

function examineNode() {
  try {
    checkNode(process.versions.node);
    return { name: "node", state: "ok", text: `${process.version} ${process.execPath}` };
  } catch (error) {
    return { name: "node", state: "missing", text: error.message, remedy: error.remedy };
  }
}

function examinePackages() {
  if (isBundle) return { name: "packages", state: "ok", text: "part of this bundle" };
  if (existsSync(path.join(root, "node_modules/.package-lock.json")))
    return { name: "packages", state: "ok", text: "installed" };
  return { name: "packages", state: "missing", text: "not installed", remedy: "npm run setup" };
}

async function findLibtorch() {
  try {
    const found = (await import("./native/libtorch.mjs")).findLibtorch();
    if (found === null) {
      return {
        finding: {
          name: "libtorch",
          state: "missing",
          text: "none found (torch 2.11 to 2.13)",
          remedy: isBundle ? "install torch 2.11 to 2.13 for python3, or set LIBTORCH" : SET_UP,
        },
      };
    }
    const kind = found.cuda ? "CUDA" : "CPU only";
    return {
      found,
      finding: { name: "libtorch", state: "ok", text: `${found.version} ${kind} ${found.dir} (by ${found.source})` },
    };
  } catch (error) {
    return {
      finding: {
        name: "libtorch",
        state: "missing",
        text: error.message,
        remedy: "set LIBTORCH to a libtorch, or unset it",
      },
    };
  }
}

function examineAddon(libtorch) {
  const remedy = SET_UP;
  try {
    const current = JSON.parse(readFileSync(path.join(root, "build/native/current.json"), "utf8"));
    if (!existsSync(current.addon)) throw new Error("gone");
    const kernels = current.kernels === null ? "no CUDA kernels" : `kernels ${path.relative(root, current.kernels)}`;
    const text = `${path.relative(root, current.addon)}, ${kernels}`;
    if (libtorch !== undefined && (libtorch.dir !== current.torch.dir || libtorch.version !== current.torch.version)) {
      return {
        name: "addon",
        state: "note",
        text: `${text}, built against torch ${current.torch.version} in ${current.torch.dir}`,
        remedy,
      };
    }
    return { name: "addon", state: "ok", text };
  } catch {
    return { name: "addon", state: "missing", text: "not built yet", remedy };
  }
}

function examineGpus(libtorch) {
  const query = "index,name,memory.free,memory.total,driver_version";
  const rows = output("nvidia-smi", [`--query-gpu=${query}`, "--format=csv,noheader,nounits"])?.split("\n") ?? [];
  if (rows.length === 0 || rows[0] === "")
    return [{ name: "gpu", state: "note", text: "none (nvidia-smi found no GPU): runs use the CPU" }];
  return rows.map((row) => {
    const [index, name, free, total, driver] = row.split(",").map((cell) => cell.trim());
    const text = `${index}: ${name}, ${gib(free)} of ${gib(total)} GiB free, driver ${driver}`;
    if (libtorch === undefined || libtorch.cuda) return { name: "gpu", state: "ok", text };
    return {
      name: "gpu",
      state: "note",
      text: `${text}; this libtorch cannot use it`,
      remedy: "install a CUDA build of torch 2.11 to 2.13",
    };
  });
}

function gib(mebibytes) {
  return (Number(mebibytes) / 1024).toFixed(1);
}

function examineTool(name, program, otherwise, missing, remedy) {
  const found =
    which(program) ?? (existsSync(`/usr/local/cuda/bin/${program}`) ? `/usr/local/cuda/bin/${program}` : undefined);
  if (found === undefined) return { name, state: otherwise, text: missing, remedy };
  const pattern = program === "nvcc" ? /release (\d+\.\d+)/ : /(\d+\.\d+[.\d]*)/;
  return { name, state: "ok", text: `${program} ${versionOf(found, ["--version"], pattern)} ${found}` };
}

function examineFfmpeg() {
  const found = findFfmpeg();
  const installed = existsSync(path.join(root, "node_modules"));
  const remedy = `${installed ? "" : "npm run setup   or   "}apt-get install -y ffmpeg`;
  if (found === undefined) return { name: "ffmpeg", state: "missing", text: "none: videos cannot be read", remedy };
  const version = versionOf(found.path, ["-version"], /ffmpeg version (\S+)/);
  if (version === undefined) {
    const text = `${found.path} (${found.source}) does not run`;
    const unset = found.source === "FFMPEG_PATH" ? "point FFMPEG_PATH to an ffmpeg, or unset it" : remedy;
    return { name: "ffmpeg", state: "missing", text, remedy: unset };
  }
  return { name: "ffmpeg", state: "ok", text: `${version} ${found.path} (${found.source})` };
}

function examineMemory() {
  const free = availableMemory() / GIB;
  const text = `${free.toFixed(1)} of ${(os.totalmem() / GIB).toFixed(1)} GiB free, ${os.availableParallelism()} CPU cores`;
  return free < 4
    ? { name: "memory", state: "note", text: `${text}; the quickstart wants 4 GiB` }
    : { name: "memory", state: "ok", text };
}

/** MemAvailable counts what the page cache would give back; os.freemem does not on every Node version. */
function availableMemory() {
  try {
    const kib = /MemAvailable:\s+(\d+) kB/.exec(readFileSync("/proc/meminfo", "utf8"))?.[1];
    return kib === undefined ? os.freemem() : Number(kib) * 1024;
  } catch {
    return os.freemem();
  }
}

function examineDisk() {
  const { bavail, bsize } = statfsSync(root);
  const free = (bavail * bsize) / GIB;
  const text = `${free.toFixed(1)} GiB free in ${root}`;
  if (free >= 3) return { name: "disk", state: "ok", text };
  return {
    name: "disk",
    state: "note",
    text: `${text}; set-up and the quickstart want 3 GiB`,
    remedy: "free some space",
  };
}

/** The findings as aligned lines, then one line for each thing to mend. */
export function render(findings) {
  const mark = { ok: "ok", note: "note", missing: "MISSING" };
  const width = Math.max(...findings.map(({ name }) => name.length));
  const lines = findings.map(({ name, state, text }) => `${name.padEnd(width)}  ${mark[state].padEnd(7)}  ${text}`);
  const remedies = findings.filter(({ state, remedy }) => state !== "ok" && remedy !== undefined);
  if (remedies.length === 0) return `${lines.join("\n")}\n`;
  return `${lines.join("\n")}\n\nto mend:\n${remedies.map(({ name, remedy }) => `  ${name.padEnd(width)}  ${remedy}`).join("\n")}\n`;
}

function runCommand(args) {
  const loader = path.join(root, "node_modules/tsx/dist/loader.mjs");
  if (!existsSync(loader)) {
    process.stderr.write(`doctor takes arguments after set-up only; to mend it: ${SET_UP}\n`);
    return 1;
  }
  const main = path.join(root, "src/cli/main.ts");
  const command = ["--import", pathToFileURL(loader).href, main, "doctor", ...args];
  return spawnSync(process.execPath, command, { stdio: "inherit" }).status ?? 1;
}

if (process.argv[1]?.endsWith("doctor.mjs") && process.argv.length > 2) {
  process.exitCode = runCommand(process.argv.slice(2));
} else if (process.argv[1]?.endsWith("doctor.mjs")) {
  const findings = await examine();
  process.stdout.write(render(findings));
  process.exitCode = findings.some(({ state }) => state === "missing") ? 1 : 0;
}
