/**
 * Builds the config of a run: defaults <- YAML files, later ones win <- `--set path=value` <- the command's own flags. Objects and
 * records merge, lists and values replace, null takes a setting back to its default. Relative paths in a config mean the working
 * directory's, not the YAML file's.
 */

import YAML from "yaml";
import { ConfigError } from "../errors.ts";
import { knobCalled } from "./aliases.ts";
import { checkConfig } from "./check.ts";
import { nearest } from "./nearest.ts";
import { type Config, configSchema } from "./schema.ts";
import { configTree, defaultOf, knobPaths, type Node, nodeAt } from "./schema-tree.ts";
import { firstLine, parseYaml, readText } from "./yaml.ts";

export interface ConfigSources {
  /** YAML files, in the order of `--config`. */
  files?: readonly string[];
  /** Assignments of the form `a.b=value`, in the order of `--set`. */
  set?: readonly string[];
  /** Knobs that have a flag of their own (`device`, `seed`, ...) by path; undefined ones are ignored. */
  flags?: Readonly<Record<string, unknown>>;
}

type Tree = Record<string, unknown>;

/** Where a setting was made, for messages: "configs/a.yaml:12", "--set trainer.klCoef=x". */
type Origins = Map<string, string>;

/**
 * Loads, merges and checks a config.
 * @throws ConfigError for a missing or malformed file, an unknown knob (with the nearest valid name), a value of the wrong type or
 *   range, or a combination that cannot work. All problems found at one stage are listed together.
 */
export function loadConfig(sources: ConfigSources): Config {
  const origins: Origins = new Map();
  let merged: Tree = {};
  for (const file of sources.files ?? [])
    merged = merge(merged, readTree(readText(file, "config file"), file, origins)) as Tree;
  for (const assignment of sources.set ?? []) applySet(merged, assignment, origins);
  for (const [path, value] of Object.entries(sources.flags ?? {})) {
    if (value !== undefined) assign(merged, path.split("."), value, `--${flagOf(path)} ${String(value)}`, origins);
  }
  return validate(merged, origins);
}

/** The config as YAML that `--config` reads back to the same config. */
export function dumpConfig(config: Config): string {
  return YAML.stringify(config, { lineWidth: 0 });
}

/** Checks an object read elsewhere (a run folder's config.yaml, a checkpoint) as `loadConfig` does. */
export function parseConfig(text: string, file: string): Config {
  const origins: Origins = new Map();
  return validate(readTree(text, file, origins), origins);
}

function readTree(text: string, file: string, origins: Origins): Tree {
  const { document, value, lines } = parseYaml(text, file);
  const tree = value ?? {};
  if (!isTree(tree)) throw new ConfigError(`${file}: a config is a mapping of sections, got ${nameOf(tree)}`, { file });

  YAML.visit(document, {
    Pair(_, pair, ancestors) {
      const path = [...ancestors, pair].flatMap((at, i, all) => pathStep(at, all[i + 1]));
      const offset = YAML.isNode(pair.key) ? pair.key.range?.[0] : undefined;
      origins.set(path.join("."), offset === undefined ? file : `${file}:${lines.linePos(offset).line}`);
    },
  });
  refuseUnknown(tree, configTree, [], (path) => origins.get(path.join(".")) ?? file);
  return tree;
}

/** What one level of a YAML document adds to a path: a pair its key, a list the index of the item that follows. */
function pathStep(at: unknown, next: unknown): string[] {
  if (YAML.isPair(at)) return [String(YAML.isScalar(at.key) ? at.key.value : at.key)];
  if (YAML.isSeq(at)) return [String(at.items.indexOf(next))];
  return [];
}

function applySet(merged: Tree, assignment: string, origins: Origins): void {
  const equals = assignment.indexOf("=");
  if (equals < 1) {
    throw new ConfigError(`--set ${assignment}: expected path=value, such as --set trainer.klCoef=0.04`, {
      assignment,
    });
  }
  const path = assignment
    .slice(0, equals)
    .trim()
    .replaceAll(/\[(\d+)\]/g, ".$1")
    .split(".");
  let value: unknown;
  try {
    value = YAML.parse(assignment.slice(equals + 1));
  } catch (error) {
    const reason = firstLine(error as Error);
    throw new ConfigError(`--set ${assignment}: the value is not valid YAML: ${reason}`, { assignment });
  }
  assign(merged, path, value, `--set ${assignment}`, origins);
}

/** Puts a value at a path, making what is missing on the way (a list that was never set starts from its default). */
function assign(root: Tree, path: readonly string[], value: unknown, origin: string, origins: Origins): void {
  for (let i = 0; i < path.length; i++) {
    if (nodeAt(path.slice(0, i + 1)) !== undefined) continue;
    const known = i === 0 ? knobCalled(path.join(".")) : undefined; // a whole path of another trainer's
    if (known === undefined) throw unknownKnob(path.slice(0, i), path[i]!, origin);
    throw new ConfigError(`${origin}: unknown knob ${path.join(".")}; did you mean ${known}?`, {
      origin,
      suggestion: known,
    });
  }
  refuseUnknown(value, nodeAt(path)!, path, () => origin);
  origins.set(path.join("."), origin);

  let parent: Tree | unknown[] = root;
  for (let i = 0; i < path.length - 1; i++) {
    const at = path.slice(0, i + 1);
    const existing = childOf(parent, path[i]!);
    const node = nodeAt(at)!;
    const child = existing ?? structuredClone(defaultOf(node.schema)) ?? (node.kind === "list" ? [] : {});
    if (existing === undefined || existing === null) putChild(parent, path[i]!, child, at, origin);
    if (!isTree(child) && !Array.isArray(child)) {
      throw new ConfigError(`${origin}: ${at.join(".")} is ${nameOf(child)}, which has no parts`, { origin });
    }
    parent = child as Tree | unknown[];
  }
  const last = path[path.length - 1]!;
  putChild(parent, last, merge(childOf(parent, last), value), path, origin);
}

function childOf(parent: Tree | unknown[], key: string): unknown {
  return Array.isArray(parent) ? parent[Number(key)] : Object.hasOwn(parent, key) ? parent[key] : undefined;
}

function putChild(parent: Tree | unknown[], key: string, child: unknown, at: readonly string[], origin: string): void {
  if (!Array.isArray(parent)) {
    parent[key] = child;
    return;
  }
  if (Number(key) > parent.length) {
    throw new ConfigError(`${origin}: ${at.join(".")} leaves a gap: the list has ${parent.length} items`, { origin });
  }
  parent[Number(key)] = child;
}

/** Objects merge key by key; anything else is replaced by what comes later. */
function merge(base: unknown, later: unknown): unknown {
  if (!isTree(base) || !isTree(later)) return structuredClone(later);
  const out: Tree = { ...base };
  for (const [key, value] of Object.entries(later))
    out[key] = merge(Object.hasOwn(base, key) ? base[key] : undefined, value);
  return out;
}

function refuseUnknown(
  value: unknown,
  node: Node,
  path: string[] | readonly string[],
  originOf: (path: string[]) => string,
): void {
  if (node.kind === "list" && Array.isArray(value)) {
    for (const [i, item] of value.entries()) refuseUnknown(item, node.child, [...path, String(i)], originOf);
  } else if (isTree(value) && (node.kind === "object" || node.kind === "record")) {
    for (const [key, child] of Object.entries(value)) {
      const next = nodeAt([key], node);
      if (next === undefined) throw unknownKnob(path, key, originOf([...path, key]));
      refuseUnknown(child, next, [...path, key], originOf);
    }
  }
}

function unknownKnob(parent: readonly string[], key: string, origin: string): ConfigError {
  const wrong = [...parent, key].join(".");
  const node = nodeAt(parent);
  const siblings = node?.kind === "object" ? Object.keys(node.children) : [];
  const close = nearest(key, siblings);
  const suggestion = close === undefined ? (knobCalled(wrong) ?? elsewhere(wrong, key)) : [...parent, close].join(".");
  const hint = suggestion === undefined ? "; docs/config.md lists every knob" : `; did you mean ${suggestion}?`;
  return new ConfigError(`${origin}: unknown knob ${wrong}${hint}`, { origin, knob: wrong, suggestion });
}

/** The knob that was meant although its section is another: the same or a similar last name, then a similar whole path. */
function elsewhere(wrong: string, key: string): string | undefined {
  const paths = knobPaths();
  const lastNames = new Map(paths.map((path) => [path.split(".").at(-1)!, path]));
  const close = nearest(key, [...lastNames.keys()]);
  return close === undefined ? nearest(wrong, paths) : lastNames.get(close);
}

function validate(merged: Tree, origins: Origins): Config {
  const result = configSchema.safeParse(withoutNulls(merged));
  if (!result.success) {
    const problems = result.error.issues.map((issue) => {
      const path = issue.path.map(String);
      return `${originOf(path, origins)}${path.join(".") || "config"}: ${describeIssue(issue)}`;
    });
    throw new ConfigError(problems.join("\n"), { problems });
  }
  const problems = checkConfig(result.data).map(
    ({ knob, problem }) => `${originOf(knob.split("."), origins)}${knob}: ${problem}`,
  );
  if (problems.length > 0) throw new ConfigError(problems.join("\n"), { problems });
  return result.data;
}

function describeIssue(issue: { code?: string; message: string; input?: unknown }): string {
  if (issue.code === "invalid_type" && /received undefined$/.test(issue.message)) return "is required but was not set";
  return issue.message.replace(/^(Invalid input|Too small|Too big|Invalid option): /, "");
}

/** "file:line: " of the closest place at or above the path that some source has set. */
function originOf(path: readonly string[], origins: Origins): string {
  for (let length = path.length; length > 0; length--) {
    const origin = origins.get(path.slice(0, length).join("."));
    if (origin !== undefined) return `${origin}: `;
  }
  return "";
}

function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (!isTree(value)) return value;
  const kept = Object.entries(value).filter(([, child]) => child !== null && child !== undefined);
  return Object.fromEntries(kept.map(([key, child]) => [key, withoutNulls(child)]));
}

function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function nameOf(value: unknown): string {
  return Array.isArray(value)
    ? "a list"
    : value === null
      ? "null"
      : isTree(value)
        ? "a mapping"
        : JSON.stringify(value);
}

/** runDir -> run-dir, as the flag is written. */
function flagOf(path: string): string {
  return path.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}
