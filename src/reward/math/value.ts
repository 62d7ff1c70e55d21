/** What an answer says: an expression, a list (set, tuple, interval, matrix), a union or a relation. */

import { type MathNode, parse } from "mathjs";
import { toPlain } from "./plain.ts";

export type Value =
  /** `decimal`: written with a decimal point, so known to a few digits only. */
  | { kind: "expression"; node: MathNode; text: string; decimal: boolean; percent: boolean }
  /** Brackets as written; "" for items without any. A matrix is a list ⟦⟧ of lists. */
  | { kind: "list"; open: string; close: string; items: Value[] }
  | { kind: "union"; items: Value[] }
  | { kind: "relation"; operator: string; left: Value; right: Value };

const MAX_DEPTH = 12;
const MAX_ITEMS = 40;
const OPEN = "([⦃⟦";
const CLOSE = ")]⦄⟧";

/** Operators and functions an answer may use; anything else that mathjs can do is not for completions to call. */
const OPERATORS = new Set(["+", "-", "*", "/", "^", "!"]);
export const FUNCTION_NAMES = new Set(
  "sin cos tan cot sec csc sinh cosh tanh asin acos atan exp abs sqrt nthRoot log log10 choose".split(" "),
);

/** Reads an answer; null where it is no mathematics that is known here. Never throws. */
export function readValue(text: string): Value | null {
  const plain = toPlain(text);
  if (plain === null) return null;
  try {
    return valueIn(plain, 0);
  } catch {
    return null; // mathjs's syntax errors, and its stack on thousands of signs
  }
}

function valueIn(source: string, depth: number): Value | null {
  const text = source.trim();
  if (depth > MAX_DEPTH || text === "") return null;
  const member = splitTop(text, "∈");
  if (member.length > 1) return member.length === 2 ? valueIn(member[1] as string, depth + 1) : null;
  const united = splitTop(text, "∪");
  if (united.length > 1) return collect(united, depth, (items) => ({ kind: "union", items }));

  const items = splitTop(text, ",");
  if (items.length > 1 && isThousands(text)) return expression(text.replaceAll(",", ""));
  if (items.length > 1)
    return collect(items, depth, (values) => ({ kind: "list", open: "", close: "", items: values }));
  const related = relation(text, depth);
  if (related !== undefined) return related;
  if (text.includes("±")) {
    if (text.split("±").length > 2) return null;
    const both = [text.replace("±", "+"), text.replace("±", "-")];
    return collect(both, depth, (values) => ({ kind: "list", open: "", close: "", items: values }));
  }
  const inner = enclosed(text);
  if (inner !== null) {
    const [open, close] = [text[0] as string, text.at(-1) as string];
    if (open === "⟦") {
      const rows = splitTop(inner, ";");
      return collect(rows, depth, (values) => ({ kind: "list", open, close, items: values }), "row");
    }
    const parts = inner.trim() === "" ? [] : splitTop(inner, ",");
    if (parts.length !== 1 || open !== "(" || close !== ")")
      return collect(parts, depth, (values) => ({ kind: "list", open, close, items: values }));
  }
  return expression(text);
}

function collect(parts: readonly string[], depth: number, build: (items: Value[]) => Value, as?: "row"): Value | null {
  if (parts.length > MAX_ITEMS) return null;
  const items: Value[] = [];
  for (const part of parts) {
    const item =
      as === "row"
        ? collect(splitTop(part, ","), depth + 1, (cells) => ({ kind: "list", open: "[", close: "]", items: cells }))
        : valueIn(part, depth + 1);
    if (item === null) return null;
    items.push(item);
  }
  return build(items);
}

/** a = b, a < b, a < x <= b; undefined where there is no relation, null for one that is not understood. */
function relation(text: string, depth: number): Value | null | undefined {
  const parts = splitTop(text, /^(?:<=|>=|!=|=|<|>)/);
  if (parts.length === 1) return undefined;
  const operators: string[] = [];
  let at = 0;
  for (const part of parts.slice(0, -1)) {
    at += part.length;
    const operator = /^(?:<=|>=|!=|=|<|>)/.exec(text.slice(at))?.[0] as string;
    operators.push(operator);
    at += operator.length;
  }
  const [first, second] = operators;
  if (operators.length === 2 && first?.[0] === second?.[0] && (first?.[0] === "<" || first?.[0] === ">")) {
    return between(parts as [string, string, string], operators as [string, string], depth);
  }
  // a = b = c: what it comes to is the last.
  if (operators.every((operator) => operator === "=")) parts.splice(0, parts.length - 2);
  else if (operators.length > 1) return null;
  const left = valueIn(parts[0] as string, depth + 1);
  const right = valueIn(parts[1] as string, depth + 1);
  return left && right && { kind: "relation", operator: first as string, left, right };
}

/** a < x <= b as the interval (a, b]. */
function between(
  [from, , to]: [string, string, string],
  [first, second]: [string, string],
  depth: number,
): Value | null {
  const low = valueIn(first[0] === "<" ? from : to, depth + 1);
  const high = valueIn(first[0] === "<" ? to : from, depth + 1);
  const [opens, closes] = first[0] === "<" ? [first, second] : [second, first];
  if (low === null || high === null) return null;
  return {
    kind: "list",
    open: opens.endsWith("=") ? "[" : "(",
    close: closes.endsWith("=") ? "]" : ")",
    items: [low, high],
  };
}

function expression(text: string): Value | null {
  const percent = text.endsWith("%");
  const bare = percent ? text.slice(0, -1).trim() : text;
  // x(y+z) is a product here, where mathjs would call x.
  const node = parse(
    bare.replace(/([A-Za-z]\w*)\s*\(/g, (call, name) => (FUNCTION_NAMES.has(name) ? call : `${name}*(`)),
  );
  let known = true;
  node.traverse((one) => {
    if (one.type === "OperatorNode") known &&= OPERATORS.has((one as unknown as { op: string }).op);
    else if (one.type === "FunctionNode")
      known &&= FUNCTION_NAMES.has((one as unknown as { fn: { name: string } }).fn.name);
    else known &&= ["ConstantNode", "SymbolNode", "ParenthesisNode"].includes(one.type);
  });
  return known ? { kind: "expression", node, text: bare.trim(), decimal: /\d\.\d|\.\d/.test(bare), percent } : null;
}

/** The parts of a text between separators that are in no bracket. */
function splitTop(text: string, separator: string | RegExp): string[] {
  const parts: string[] = [];
  let depth = 0;
  let start = 0;
  for (let i = 0; i < text.length; i++) {
    const sign = text[i] as string;
    if (OPEN.includes(sign)) depth++;
    else if (CLOSE.includes(sign)) depth--;
    if (depth !== 0) continue;
    const length = typeof separator === "string" ? Number(sign === separator) : lengthOf(separator, text, i);
    if (length === 0) continue;
    parts.push(text.slice(start, i));
    start = i + length;
    i = start - 1;
  }
  return [...parts, text.slice(start)];
}

function lengthOf(pattern: RegExp, text: string, at: number): number {
  return pattern.exec(text.slice(at, at + 2))?.[0].length ?? 0;
}

/** What stands inside when one pair of brackets holds all of the text; the two may differ, as in (0, 1]. */
function enclosed(text: string): string | null {
  if (text.length < 2 || !OPEN.includes(text[0] as string) || !CLOSE.includes(text.at(-1) as string)) return null;
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    if (OPEN.includes(text[i] as string)) depth++;
    else if (CLOSE.includes(text[i] as string) && --depth === 0 && i < text.length - 1) return null;
  }
  return depth === 0 ? text.slice(1, -1) : null;
}

/** 1,234,567.8: commas that part thousands. */
function isThousands(text: string): boolean {
  return /^[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*%?$/.test(text);
}
