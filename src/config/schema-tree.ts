/** Reads the zod schema as a tree of names, for everything that must know which knobs exist: unknown keys, `--set`, docs/config.md. */

import type { z } from "zod";
import { knobs } from "./schema.ts";

type Schema = z.core.$ZodType;

/** A place in the config: an object with named knobs, a record (any names), a list, or a value. */
export type Node =
  | { kind: "object"; children: Record<string, Node>; schema: Schema }
  | { kind: "record"; child: Node; schema: Schema }
  | { kind: "list"; child: Node; schema: Schema }
  | { kind: "value"; schema: Schema };

/** The whole config as a tree. */
export const configTree: Node = nodeOf(knobs);

/** The node at a path such as ["trainer", "klCoef"] or ["data", "eval", "L1", "file"]; undefined where no such knob can be. */
export function nodeAt(path: readonly string[], node: Node = configTree): Node | undefined {
  const [head, ...rest] = path;
  if (head === undefined) return node;
  switch (node.kind) {
    case "object":
      return Object.hasOwn(node.children, head) ? nodeAt(rest, node.children[head]) : undefined;
    case "record":
      return nodeAt(rest, node.child);
    case "list":
      return /^\d+$/.test(head) ? nodeAt(rest, node.child) : undefined;
    case "value":
      return undefined;
  }
}

/** Every knob's path; `<name>` stands for a record's key, `[]` for a list's items: `data.eval.<name>.file`, `rewards[].weight`. */
export function knobPaths(node: Node = configTree, prefix = ""): string[] {
  const join = (name: string) => (prefix === "" ? name : `${prefix}.${name}`);
  switch (node.kind) {
    case "object":
      return Object.entries(node.children).flatMap(([name, child]) => knobPaths(child, join(name)));
    case "record":
      return [prefix, ...(node.child.kind === "value" ? [] : knobPaths(node.child, join("<name>")))];
    case "list":
      return [prefix, ...(node.child.kind === "value" ? [] : knobPaths(node.child, `${prefix}[]`))];
    case "value":
      return [prefix];
  }
}

/** The default a schema states itself (not one that follows from its children's); undefined where it states none. */
export function defaultOf(schema: Schema): unknown {
  const def = schema._zod.def as { type: string; defaultValue?: unknown; innerType?: Schema };
  if (def.type === "default" || def.type === "prefault") return def.defaultValue;
  return def.innerType === undefined ? undefined : defaultOf(def.innerType);
}

/** True where a value may be left out although there is no default. */
export function isOptional(schema: Schema): boolean {
  return schema._zod.def.type === "optional";
}

/** The schema without its wrappers for defaults and optionality. */
export function unwrap(schema: Schema): Schema {
  const inner = (schema._zod.def as { innerType?: Schema }).innerType;
  return inner === undefined ? schema : unwrap(inner);
}

function nodeOf(schema: Schema): Node {
  const bare = unwrap(schema);
  const def = bare._zod.def as {
    type: string;
    shape?: Record<string, Schema>;
    valueType?: Schema;
    element?: Schema;
  };
  if (def.type === "object" && def.shape !== undefined) {
    const children = Object.entries(def.shape).map(([name, child]) => [name, nodeOf(child)] as const);
    return { kind: "object", children: Object.fromEntries(children), schema };
  }
  if (def.type === "record" && def.valueType !== undefined) {
    return { kind: "record", child: nodeOf(def.valueType), schema };
  }
  if (def.type === "array" && def.element !== undefined) return { kind: "list", child: nodeOf(def.element), schema };
  return { kind: "value", schema };
}
