/**
 * Checks the walls between the parts of src/ (docs/architecture.md): who may import whom, no cycles, packages and the addon that
 * only one file may touch, no index.ts, no file over 500 lines. Lists files over 350 lines without failing.
 * Usage: node scripts/check-layers.mjs [folder]   (the folder that holds src/; default: this repository)
 */

import { readdirSync, readFileSync, realpathSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

/** Folders of src/ that each folder may import, besides itself and the files directly in src/. */
const MAY_IMPORT = {
  cli: ["trainer", "eval", "experiment", "distributed", "rollout", "reward", "model", "data", "torch", "config"],
  experiment: ["trainer", "eval", "rollout", "reward", "model", "data", "torch", "config"],
  trainer: ["eval", "rollout", "reward", "model", "data", "distributed", "torch", "config"],
  eval: ["rollout", "reward", "model", "data", "torch", "config"],
  rollout: ["model", "torch", "config"],
  model: ["torch", "config"],
  distributed: ["torch", "config"],
  torch: [],
  reward: ["config"],
  data: ["config"],
  config: [],
  "": [], // the files directly in src/
};

/** Imports that are allowed for types only: they vanish when the program runs. */
const MAY_IMPORT_TYPES = { rollout: ["data"], eval: ["trainer"] };

/** Packages with one door each. */
const ONLY_IN = { "fluent-ffmpeg": "data/ffmpeg.ts" };

/** Loading a native addon: its one door is src/torch/addon.ts. */
const LOADS_ADDON = /process\.dlopen\(|require\([^)]*\.node["'`]\)/;
const ADDON_DOOR = "torch/addon.ts";

const WARN_LINES = 350;
const MAX_LINES = 500;

/**
 * All violations in `<folder>/src`, as readable lines, and the files worth splitting.
 * @param {string} folder
 * @returns {{ violations: string[], long: string[] }}
 */
export function checkLayers(folder) {
  const src = path.join(folder, "src");
  const files = sourceFiles(src);
  const violations = [];
  const long = [];
  const graph = new Map();

  for (const file of files) {
    const text = readFileSync(path.join(src, file), "utf8");
    const lines = text.split("\n").length - 1;
    if (lines > MAX_LINES) violations.push(`src/${file}: ${lines} lines, the limit is ${MAX_LINES}: split it`);
    else if (lines > WARN_LINES) long.push(`src/${file}: ${lines} lines`);
    if (path.basename(file) === "index.ts") violations.push(`src/${file}: no index.ts; import from the file itself`);

    const code = withoutComments(text);
    if (LOADS_ADDON.test(code) && file !== ADDON_DOOR) {
      violations.push(`src/${file}: only src/${ADDON_DOOR} loads the native addon`);
    }
    const targets = [];
    for (const { specifier, typeOnly } of importsOf(code)) {
      const problem = packageProblem(file, specifier) ?? layerProblem(file, specifier, typeOnly);
      if (problem !== undefined) violations.push(`src/${file}: ${problem}`);
      if (specifier.startsWith(".") && !typeOnly)
        targets.push(path.normalize(path.join(path.dirname(file), specifier)));
    }
    graph.set(file, targets);
  }
  for (const cycle of cyclesOf(graph))
    violations.push(`import cycle: ${cycle.map((file) => `src/${file}`).join(" -> ")}`);
  return { violations, long };
}

function packageProblem(file, specifier) {
  const door = ONLY_IN[specifier];
  return door !== undefined && door !== file ? `only src/${door} imports ${specifier}` : undefined;
}

function layerProblem(file, specifier, typeOnly) {
  if (!specifier.startsWith(".")) return undefined;
  const target = path.normalize(path.join(path.dirname(file), specifier));
  if (target.startsWith("..")) return `imports ${specifier}, which is outside src/`;
  const from = layerOf(file);
  const to = layerOf(target);
  if (from === to || to === "") return undefined;
  if (!Object.hasOwn(MAY_IMPORT, from)) return `src/${from} is not a layer that scripts/check-layers.mjs knows`;
  if (MAY_IMPORT[from].includes(to)) return undefined;
  if (typeOnly && (to === "config" || MAY_IMPORT_TYPES[from]?.includes(to))) return undefined;
  return `${from === "" ? "a file directly in src/" : from} must not import ${to} (${specifier})`;
}

/** "" for a file directly in src/. */
function layerOf(file) {
  const [first, ...rest] = file.split(path.sep);
  return rest.length === 0 ? "" : first;
}

/** Every import, export-from and dynamic import with a literal specifier. */
function importsOf(code) {
  const found = [];
  for (const match of code.matchAll(/\b(?:import|export)\s+(type\s+)?([\w*{][^"';]*?\sfrom\s*)["']([^"']+)["']/g)) {
    const names = /^\{([^}]*)\}/.exec(match[2].trim())?.[1];
    const eachIsType = names?.trim() !== "" && names?.split(",").every((name) => /^\s*(type\s|$)/.test(name));
    found.push({ specifier: match[3], typeOnly: match[1] !== undefined || eachIsType === true });
  }
  for (const match of code.matchAll(/\bimport\s*\(?\s*["']([^"']+)["']/g)) {
    found.push({ specifier: match[1], typeOnly: false });
  }
  return found;
}

/** Blanks comments, and leaves strings alone. */
function withoutComments(text) {
  return text.replace(
    /("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)|\/\/[^\n]*|\/\*[\s\S]*?\*\//g,
    (_, string) => string ?? " ",
  );
}

/** One path for each cycle found by depth-first search, its first file repeated at the end. */
function cyclesOf(graph) {
  const state = new Map(); // file -> "open" | "done"
  const cycles = [];
  const visit = (file, trail) => {
    if (state.get(file) === "done" || !graph.has(file)) return;
    if (state.get(file) === "open") {
      cycles.push([...trail.slice(trail.indexOf(file)), file]);
      return;
    }
    state.set(file, "open");
    for (const next of graph.get(file)) visit(next, [...trail, file]);
    state.set(file, "done");
  };
  for (const file of graph.keys()) visit(file, []);
  return cycles;
}

function sourceFiles(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.m?[tj]s$/.test(entry.name))
    .map((entry) => path.relative(folder, path.join(entry.parentPath, entry.name)))
    .sort();
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const { violations, long } = checkLayers(process.argv[2] ?? fileURLToPath(new URL("..", import.meta.url)));
  for (const line of long) process.stdout.write(`worth splitting: ${line}\n`);
  for (const line of violations) process.stderr.write(`${line}\n`);
  process.stdout.write(violations.length === 0 ? "layers: in order\n" : `layers: ${violations.length} violations\n`);
  process.exitCode = violations.length === 0 ? 0 : 1;
}
