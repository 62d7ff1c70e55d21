/**
 * Whether two answers mean the same. Expressions are compared by their values: exactly for whole numbers, to rounding for others, and at
 * several points where they have symbols. Double precision in place of symbolic rewriting: every answer takes about the same short time,
 * 9^9^9^9 included, and nothing a completion holds can make the comparison run away.
 */

import { type Complex, isComplex } from "mathjs";
import { uniform } from "../../random.ts";
import { strip } from "../extract-answer.ts";
import { FUNCTION_NAMES, readValue, type Value } from "./value.ts";

/** A longer answer is only compared as text. */
const MAX_LENGTH = 600;
/** Relative differences up to here are rounding, for exact expressions and for decimals. */
const EXACT = 1e-9;
const DECIMAL = 1e-6;
const POINTS = 8;
const ENOUGH = 3;
const CONSTANTS = new Set(["pi", "e", "i", "Infinity"]);

type Expression = Extract<Value, { kind: "expression" }>;
type List = Extract<Value, { kind: "list" }>;
type Relation = Extract<Value, { kind: "relation" }>;

/** Never throws. */
export function mathEqual(given: string, gold: string): boolean {
  const [a, b] = [tidy(given), tidy(gold)];
  if (b === "") return false;
  if (a === b) return true;
  if (a.length > MAX_LENGTH || b.length > MAX_LENGTH) return false;
  // Words are compared as words: "act" is not "cat", however it multiplies.
  if (isWord(a) || isWord(b)) return words(a) === words(b);
  const [valueA, valueB] = [readValue(a), readValue(b)];
  if (valueA === null || valueB === null) return words(a) === words(b);
  return same(valueA, valueB);
}

/** Without delimiters, a full stop at the end and the spaces around. */
function tidy(text: string): string {
  let out = strip(text);
  for (const [open, close] of [
    ["$$", "$$"],
    ["$", "$"],
    ["\\(", "\\)"],
    ["\\[", "\\]"],
  ] as const) {
    if (out.length > open.length + close.length && out.startsWith(open) && out.endsWith(close)) {
      out = strip(out.slice(open.length, -close.length));
    }
  }
  return out.replace(/(?<=[^.])\.$/, "");
}

/** Letters alone, but for two that may be a product. */
function isWord(text: string): boolean {
  return /^(?:\\text\s*\{)?[\p{L}\s]{2,}\}?$/u.test(text) && !/^(?:pi|inf|infinity|[a-z]{2})$/.test(text);
}

function words(text: string): string {
  return strip(text.replace(/^\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}$/, "$1"))
    .replaceAll(/\s+/g, " ")
    .toLowerCase();
}

function same(a: Value, b: Value): boolean {
  if (a.kind === "relation" && b.kind === "relation") return sameRelation(a, b);
  if (a.kind === "relation") return sameAsRelation(a, b);
  if (b.kind === "relation") return sameAsRelation(b, a);
  if (a.kind === "expression" && b.kind === "expression") return sameExpression(a, b);
  if (a.kind === "union" && b.kind === "union") return sameItems(a.items, b.items, false);
  if (a.kind === "list" && b.kind === "list") return sameList(a, b);
  // One number in set braces is that number.
  const [list, other] = a.kind === "list" ? [a, b] : [b, a];
  return list.kind === "list" && list.open === "⦃" && list.items.length === 1 && same(list.items[0] as Value, other);
}

/** `x = 5` against `5`, `x > 3` against (3, ∞). */
function sameAsRelation(relation: Relation, other: Value): boolean {
  if (relation.operator === "=") {
    if (isSymbol(relation.left)) return same(relation.right, other);
    return isSymbol(relation.right) && same(relation.left, other);
  }
  const interval = intervalOf(relation);
  return interval !== null && same(interval, other);
}

function sameRelation(a: Relation, b: Relation): boolean {
  const [left, right] = [intervalOf(a), intervalOf(b)];
  if (left !== null && right !== null && symbolOf(a) === symbolOf(b)) return same(left, right);
  const [first, second] = [upward(a), upward(b)];
  if (first === null || second === null || first.operator !== second.operator) return false;
  return proportional(first, second, first.operator === "=" || first.operator === "!=");
}

/** x > a, x <= a and the like, the symbol on either side, as an interval; null for any other relation. */
function intervalOf({ operator, left, right }: Relation): Value | null {
  const flipped = isSymbol(right) && !isSymbol(left);
  if ((!isSymbol(left) && !flipped) || operator === "=" || operator === "!=") return null;
  const bound = flipped ? left : right;
  const greater = operator.startsWith(">") !== flipped;
  const closed = operator.endsWith("=");
  const [down, up] = [readValue("-\\infty"), readValue("\\infty")];
  if (down === null || up === null) return null;
  return greater
    ? { kind: "list", open: closed ? "[" : "(", close: ")", items: [bound, up] }
    : { kind: "list", open: "(", close: closed ? "]" : ")", items: [down, bound] };
}

function symbolOf({ left, right }: Relation): string {
  return isSymbol(left) ? (left as Expression).text : (right as Expression).text;
}

/** The relation as lower < greater. */
function upward({ operator, left, right }: Relation): { operator: string; left: Expression; right: Expression } | null {
  if (left.kind !== "expression" || right.kind !== "expression") return null;
  return operator.startsWith(">")
    ? { operator: operator.replace(">", "<"), left: right, right: left }
    : { operator, left, right };
}

/** Whether the two sides' differences are multiples of one another: x + y = 1 and 2x = 2 - 2y. An inequality bears only positive factors. */
function proportional(
  a: { left: Expression; right: Expression },
  b: { left: Expression; right: Expression },
  anySign: boolean,
): boolean {
  const names = symbols([a.left, a.right, b.left, b.right]);
  let factor: number | undefined;
  let seen = 0;
  for (let point = 0; point < POINTS; point++) {
    const scope = scopeAt(names, point);
    const [first, second] = [a, b].map(({ left, right }) => {
      const [l, r] = [valueAt(left, scope), valueAt(right, scope)];
      return l === null || r === null ? null : subtract(l, r);
    });
    if (!first || !second || first[1] !== 0 || second[1] !== 0 || second[0] === 0) continue;
    const ratio = first[0] / second[0];
    factor ??= ratio;
    if (!close([ratio, 0], [factor, 0], 1e-7)) return false;
    seen++;
  }
  return seen >= ENOUGH && factor !== undefined && factor !== 0 && (anySign || factor > 0);
}

function sameList(a: List, b: List): boolean {
  const bare = (list: List) => list.open === "" || list.open === "⦃";
  // A list without brackets may be a set's elements, or a tuple's written bare.
  if (a.open === "" && b.open === "(" && b.close === ")") return sameItems(a.items, b.items, true);
  if (b.open === "" && a.open === "(" && a.close === ")") return sameItems(a.items, b.items, true);
  if (bare(a) && bare(b)) return sameItems(a.items, b.items, false);
  return a.open === b.open && a.close === b.close && sameItems(a.items, b.items, true);
}

function sameItems(a: readonly Value[], b: readonly Value[], ordered: boolean): boolean {
  if (a.length !== b.length) return false;
  if (ordered) return a.every((item, i) => same(item, b[i] as Value));
  const left = [...b];
  return a.every((item) => {
    const at = left.findIndex((other) => same(item, other));
    if (at >= 0) left.splice(at, 1);
    return at >= 0;
  });
}

function sameExpression(a: Expression, b: Expression): boolean {
  if (a.percent !== b.percent) {
    // 50 % is 0.5; where a percentage is asked for, it is also written as 50.
    const [marked, plain] = a.percent ? [a, b] : [b, a];
    return sameNumbers(marked, plain, 0.01) || sameNumbers(marked, plain, 1);
  }
  return sameNumbers(a, b, 1);
}

function sameNumbers(a: Expression, b: Expression, factor: number): boolean {
  const whole = /^[-+]?\d+$/;
  if (factor === 1 && whole.test(a.text) && whole.test(b.text))
    return BigInt(noPlus(a.text)) === BigInt(noPlus(b.text));
  const names = symbols([a, b]);
  const tolerance = a.decimal || b.decimal ? DECIMAL : EXACT;
  if (names.length === 0) {
    const [x, y] = [valueAt(a, scopeAt([], 0)), valueAt(b, scopeAt([], 0))];
    if (isInfinite(a) || isInfinite(b)) return isInfinite(a) === isInfinite(b);
    if (x === null || y === null) return false;
    const scaled: Pair = [x[0] * factor, x[1] * factor];
    const integers = scaled[1] === 0 && y[1] === 0 && Number.isSafeInteger(scaled[0]) && Number.isSafeInteger(y[0]);
    return integers ? scaled[0] === y[0] : close(scaled, y, tolerance);
  }
  let seen = 0;
  for (let point = 0; point < POINTS; point++) {
    const scope = scopeAt(names, point);
    const [x, y] = [valueAt(a, scope), valueAt(b, scope)];
    if (x === null && y === null) continue;
    if (x === null || y === null || !close([x[0] * factor, x[1] * factor], y, tolerance)) return false;
    seen++;
  }
  return seen >= ENOUGH;
}

/** Infinity as written, with its sign; a value that is too large for a double is not it. */
function isInfinite({ text }: Expression): "+" | "-" | false {
  const match = /^\(?([-+]?)\s*Infinity\)?$/.exec(text);
  return match === null ? false : match[1] === "-" ? "-" : "+";
}

/** Real and imaginary part. */
type Pair = [re: number, im: number];

/** n over k; beyond what takes a thousand factors it is not computed. */
function choose(n: unknown, k: unknown): number {
  if (!Number.isInteger(n) || !Number.isInteger(k)) return Number.NaN;
  const [from, few] = [n as number, Math.min(k as number, (n as number) - (k as number))];
  if (few < 0 || few > 1000) return few < 0 ? 0 : Number.NaN;
  let value = 1;
  for (let i = 1; i <= few; i++) value = (value * (from - few + i)) / i;
  return Math.round(value) || value;
}

/** The expression's value; null where it is none, or too large for a double. */
function valueAt({ node }: Expression, scope: Map<string, unknown>): Pair | null {
  try {
    const value: unknown = node.evaluate(scope);
    const pair: Pair = isComplex(value)
      ? [(value as Complex).re, (value as Complex).im]
      : typeof value === "number"
        ? [value, 0]
        : [Number.NaN, 0];
    // Rounding leaves (-1)^(1/2) squared a little off the real line.
    if (Math.abs(pair[1]) <= 1e-12 * Math.abs(pair[0])) pair[1] = 0;
    return pair.every(Number.isFinite) ? pair : null;
  } catch {
    return null;
  }
}

/** A value for each symbol, neither round nor of one sign only, the same in every process. */
function scopeAt(names: readonly string[], point: number): Map<string, unknown> {
  const scope = new Map<string, unknown>([["choose", choose]]);
  for (const name of names) {
    const share = uniform("math", name, point);
    scope.set(name, (point % 2 === 0 ? 1 : -1) * (0.2 + 2.5 * share));
  }
  return scope;
}

function symbols(expressions: readonly Expression[]): string[] {
  const names = new Set<string>();
  for (const { node } of expressions) {
    node.traverse((one, path) => {
      const name = (one as unknown as { name?: unknown }).name;
      if (one.type !== "SymbolNode" || typeof name !== "string" || CONSTANTS.has(name)) return;
      if (!(path === "fn" && FUNCTION_NAMES.has(name))) names.add(name);
    });
  }
  return [...names].sort();
}

function isSymbol(value: Value): boolean {
  return value.kind === "expression" && /^[A-Za-z](?:_\w+)?(?:\s*\(\s*[a-z]\s*\))?$/.test(value.text);
}

function close(a: Pair, b: Pair, tolerance: number): boolean {
  const size = Math.max(Math.hypot(...a), Math.hypot(...b));
  return Math.hypot(...subtract(a, b)) <= tolerance * size;
}

function subtract(a: Pair, b: Pair): Pair {
  return [a[0] - b[0], a[1] - b[1]];
}

function noPlus(digits: string): string {
  return digits.replace("+", "");
}
