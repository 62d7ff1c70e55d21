/** docs/config.md, written from the schema: every knob with its type, default, meaning and name elsewhere. */

import { z } from "zod";
import { aliases } from "./aliases.ts";
import { configTree, defaultOf, isOptional, type Node, unwrap } from "./schema-tree.ts";

export interface Knob {
  path: string;
  type: string;
  /** As it would be written in YAML; "required" or "none" (optional) where there is no default, "by x" where another knob decides. */
  default: string;
  description: string;
  elsewhere: string;
}

/** Every knob, in the schema's order. */
export function describeKnobs(): Knob[] {
  return knobsOf(configTree, "");
}

/** The text of docs/config.md. */
export function configReference(): string {
  const knobs = describeKnobs();
  const sections = new Map<string, Knob[]>();
  for (const knob of knobs) {
    const section =
      /^(\w+)(\.|\[)/.exec(knob.path)?.[1] ?? (configTree.kind === "object" && isSection(knob.path) ? knob.path : "");
    sections.set(section, [...(sections.get(section) ?? []), knob]);
  }
  const tables = [...sections].map(
    ([section, rows]) => `## ${section === "" ? "Run" : `\`${section}\``}\n\n${table(rows)}`,
  );
  return `${HEAD}\n${tables.join("\n\n")}\n`;
}

const HEAD = `# Configuration

Written from \`src/config/schema.ts\` by \`npm run docs\`; do not edit by hand (CI compares).

A run's config is built in this order, later sources win: the defaults below, each \`--config file.yaml\`, each \`--set path=value\`, the flags
\`--device\`, \`--dtype\`, \`--seed\`, \`--run-dir\`. Sections and records merge, lists and values replace, \`null\` takes a knob back to its
default. The value of \`--set\` is YAML: \`--set trainer.klCoef=0.04\`, \`--set 'rewards=[{name: accuracy}, {name: format, weight: 0.2}]'\`,
\`--set rewards.0.weight=2\`, \`--set data.eval.L1.limit=100\`. An unknown knob is an error that names the nearest one. Relative paths mean the
working directory's. \`--dry-run\` prints the resolved config; a run writes it to \`<runDir>/config.yaml\`.

\`[]\` stands for an item of a list, \`<name>\` for a name of your choice. The last column gives the knob's name in TRL, verl or SEED-Bench-R1
(\`seed\`), where it has one; names in TRL are the seed's flags too.
`;

function table(rows: readonly Knob[]): string {
  const cells = rows.map((knob) =>
    [`\`${knob.path}\``, knob.type, knob.default, knob.description, knob.elsewhere].map(escapeCell).join(" | "),
  );
  return [
    "| knob | type | default | meaning | elsewhere |",
    "|---|---|---|---|---|",
    ...cells.map((row) => `| ${row} |`),
  ].join("\n");
}

function knobsOf(node: Node, path: string): Knob[] {
  if (node.kind === "object") {
    return Object.entries(node.children).flatMap(([name, child]) =>
      knobsOf(child, path === "" ? name : `${path}.${name}`),
    );
  }
  const own = knob(node, path);
  if (node.kind === "value" || node.child.kind === "value") return [own];
  return [own, ...knobsOf(node.child, node.kind === "record" ? `${path}.<name>` : `${path}[]`)];
}

function knob(node: Node, path: string): Knob {
  const names = aliases[path.replace(/^data\.eval\.<name>\.(mediaRoot|format|limit)$/, "data.train[].$1")] ?? {};
  const fallback = defaultOf(node.schema);
  return {
    path,
    type: typeOf(node),
    default:
      fallback === undefined
        ? (metaOf(node, "follows") ?? (isOptional(node.schema) ? "none" : "required"))
        : `\`${yamlOf(fallback)}\``,
    description: metaOf(node, "description") ?? "",
    elsewhere: Object.entries(names)
      .map(([project, name]) => `${project === "trl" ? "TRL" : project} \`${name}\``)
      .join(", "),
  };
}

function isSection(path: string): boolean {
  return configTree.kind === "object" && configTree.children[path]?.kind !== "value";
}

/** What the schema says of a knob: `description`, and `follows`, what its default follows from where that is no one value. */
function metaOf(node: Node, name: "description" | "follows"): string | undefined {
  for (let schema = node.schema as z.ZodType | undefined; schema !== undefined; ) {
    const said = z.globalRegistry.get(schema)?.[name];
    if (typeof said === "string") return said;
    schema = (schema._zod.def as { innerType?: z.ZodType }).innerType;
  }
  return undefined;
}

/** The type and range in words: "integer > 0", "number, 0 to 1", "number, above 0 to 1", "number, 0 to below 1". */
function typeOf(node: Node): string {
  if (node.kind === "list") return node.child.kind === "value" ? `list of ${typeOf(node.child)}` : "list";
  if (node.kind === "record")
    return node.child.kind === "value" ? `names to ${typeOf(node.child)}` : "names to sections";
  if (node.kind === "object") return "section";
  const json = z.toJSONSchema(unwrap(node.schema)) as JsonType;
  if (json.enum !== undefined) return json.enum.map((choice) => `\`${choice}\``).join(", ");
  if (json.type !== "number" && json.type !== "integer") return json.type ?? "any";
  const lower = json.minimum ?? json.exclusiveMinimum;
  const upper = json.maximum ?? json.exclusiveMaximum;
  const bounded = upper !== undefined && Math.abs(upper) < Number.MAX_SAFE_INTEGER;
  const from = lower === undefined || Math.abs(lower) >= Number.MAX_SAFE_INTEGER ? "" : String(lower);
  if (bounded && from !== "") {
    const [above, below] = [json.minimum === undefined ? "above " : "", json.maximum === undefined ? "below " : ""];
    return `${json.type}, ${above}${from} to ${below}${upper}`;
  }
  if (from === "") return json.type;
  return `${json.type} ${json.exclusiveMinimum === undefined ? "≥" : ">"} ${from}`;
}

interface JsonType {
  type?: string;
  enum?: string[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
}

function yamlOf(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(yamlOf).join(", ")}]`;
  if (typeof value !== "object" || value === null) return String(value);
  const entries = Object.entries(value).map(([key, child]) => `${key}: ${yamlOf(child)}`);
  return `{${entries.join(", ")}}`;
}

function escapeCell(text: string): string {
  return text
    .replaceAll("|", "\\|")
    .replaceAll("\n", " ")
    .replaceAll(/<(?=name>)(?![^`]*`)/g, "&lt;");
}
