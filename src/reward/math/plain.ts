/**
 * LaTeX and the way people type formulas, brought to one plain notation that src/reward/math/value.ts takes apart: fractions, roots and
 * functions as `((1)/(2))`, `sqrt(2)`, implicit products as they stand; sets as ⦃1,2⦄, matrices as ⟦1,2;3,4⟧, ± and ∪ as such.
 * What is not known gives null and is then compared as text. Time and depth are bounded by the length of the text.
 */

import { FUNCTIONS, GREEK_NAMES, LOOKS, PROSE, SIGNS, TYPED, UNITS, WORDS, WRAPPERS } from "./notation.ts";

/** Nested deeper than any answer; recursion stops here. */
const MAX_DEPTH = 40;

/** The plain notation of a formula, or null where it holds something unknown. Never throws. */
export function toPlain(formula: string): string | null {
  try {
    const typed = Array.from(formula.normalize("NFC"), (sign) => TYPED[sign] ?? sign).join("");
    const signs = typed.replaceAll("**", "^").replaceAll("{,}", ",").trim().replace(UNITS, "");
    const text = repeatingDecimals(mixedNumbers(signs));
    const reader = new Reader(text);
    const plain = reader.formula(() => reader.done, 0);
    return plain.trim() === "" ? null : plain.trim();
  } catch (error) {
    if (error instanceof Unknown || error instanceof RangeError) return null;
    throw error;
  }
}

/** 3 1/2 -> (3+(1)/(2)), as 3\frac{1}{2} is read. */
function mixedNumbers(text: string): string {
  const mixed = /(^|[-+=<>(,;±$]\s*)(\d{1,9})\s+(\d{1,9})\s*\/\s*(\d{1,9})(?![\w.(^!])/g;
  return text.replace(mixed, "$1($2+($3)/($4))");
}

/** 0.1\overline{6} -> ((16 - 1) / 90): exact. */
function repeatingDecimals(text: string): string {
  return text.replace(/(\d{0,15})\.(\d{0,15})\\(?:overline|bar)\{(\d{1,15})\}/g, (_, whole, fixed, again) => {
    const scale = `${"9".repeat(again.length)}${"0".repeat(fixed.length)}`;
    return `(((${whole}${fixed}${again})-(${whole === "" && fixed === "" ? "0" : whole + fixed}))/(${scale}))`;
  });
}

/** Something that this notation has no word for. */
class Unknown extends Error {}

class Reader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  get done(): boolean {
    return this.#at >= this.#text.length;
  }

  /** Reads until `end` says so. */
  formula(end: () => boolean, depth: number): string {
    if (depth > MAX_DEPTH) throw new Unknown();
    let out = "";
    let bars = 0;
    while (!end()) {
      if (this.done) throw new Unknown();
      if (this.#peek() === "|") {
        this.#at++;
        out += bars++ % 2 === 0 ? " abs(" : ")";
      } else {
        out = this.#item(out, depth);
      }
    }
    if (bars % 2 === 1) throw new Unknown();
    return out;
  }

  /** Appends the next item to what was read before it, which it may change (a mixed number). */
  #item(before: string, depth: number): string {
    const sign = this.#peek();
    if (sign === "\\") return this.#command(before, depth);
    if (sign === "{") return `${before}(${this.#argument(depth)})`;
    if (sign === "^") {
      this.#at++;
      if (/^\s*\{?\s*(\\circ|\\degree)\s*\}?/.test(this.#text.slice(this.#at, this.#at + 20))) {
        this.#argument(depth);
        return before;
      }
      return `${before}^(${this.#power(depth)})`;
    }
    if (sign === "_") {
      this.#at++;
      const index = this.#argument(depth).replaceAll(/[\s()]/g, "");
      if (!/[A-Za-z]$/.test(before) || !/^\w{1,9}$/.test(index)) throw new Unknown();
      return `${before}_${index} `;
    }
    if (/[A-Za-z]/.test(sign)) return before + this.#letters(depth);
    const number = /^(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?/.exec(this.#text.slice(this.#at, this.#at + 400))?.[0];
    if (number !== undefined) {
      this.#at += number.length;
      return before + number;
    }
    if (!"()[]+-*/,;=<>!%±∪∈⦃⦄ \t\n'&~$".includes(sign) || sign === "'" || sign === "&") throw new Unknown();
    this.#at++;
    return sign === "~" || sign === "$" ? `${before} ` : before + sign;
  }

  #command(before: string, depth: number): string {
    const name = /^\\([A-Za-z]+|[\s\S])/.exec(this.#text.slice(this.#at, this.#at + 40))?.[1];
    if (name === undefined) throw new Unknown();
    this.#at += name.length + 1;
    if (LOOKS.has(name)) return `${before}${this.#text[this.#at - 1] === "!" || name === "," ? "" : " "}`;
    if (Object.hasOwn(SIGNS, name)) return before + SIGNS[name];
    if (GREEK_NAMES.has(name) || Object.hasOwn(WORDS, name)) return `${before} ${WORDS[name] ?? name} `;
    if (WRAPPERS.has(name)) return `${before}(${this.#argument(depth)})`;
    if (PROSE.has(name)) return before + this.#prose(before);
    if (name === "begin") return before + this.#matrix(depth);
    if (name === "lvert" || name === "rvert" || name === "|") throw new Unknown();
    if (name === "sqrt") {
      const root = this.#bracketed(depth);
      const of = this.#argument(depth);
      return `${before} ${root === undefined ? `sqrt(${of})` : `nthRoot((${of}),(${root}))`}`;
    }
    if (/^[dtc]?frac$/.test(name)) {
      const fraction = `((${this.#argument(depth)})/(${this.#argument(depth)}))`;
      const whole = /(?:^|[^\w.)])(\d+)\s*$/.exec(before)?.[1];
      // 2\frac{3}{4} is a mixed number, not a product.
      return whole === undefined
        ? before + fraction
        : `${before.trimEnd().slice(0, -whole.length)}(${whole}+${fraction})`;
    }
    if (/^[dt]?binom$/.test(name)) return `${before} choose((${this.#argument(depth)}),(${this.#argument(depth)}))`;
    if (Object.hasOwn(FUNCTIONS, name)) return before + this.#application(name, depth);
    throw new Unknown();
  }

  /** A word: a function, a constant, or up to three letters that are multiplied. */
  #letters(depth: number): string {
    const word = /^[A-Za-z]+/.exec(this.#text.slice(this.#at, this.#at + 40))?.[0] ?? "";
    this.#at += word.length;
    const lower = word.toLowerCase();
    if (Object.hasOwn(FUNCTIONS, lower)) return this.#application(lower, depth);
    if (Object.hasOwn(WORDS, lower)) return ` ${WORDS[lower]} `;
    if (GREEK_NAMES.has(word)) return ` ${word} `;
    if (word.length > 3) throw new Unknown();
    return ` ${[...word].join(" ")}`; // the space keeps "2 e" and "a b" apart
  }

  /** \sin^2 x, sin(x), \log_2{8}, \sin 2x + 1. */
  #application(name: string, depth: number): string {
    let power = "";
    let base: string | undefined;
    for (let i = 0; i < 2; i++) {
      this.#spaces();
      if (this.#peek() === "^") {
        this.#at++;
        power = `^(${this.#power(depth)})`;
      } else if (this.#peek() === "_" && name === "log") {
        this.#at++;
        base = this.#argument(depth);
      }
    }
    if (power.replaceAll(/[\s()]/g, "") === "^-1") throw new Unknown(); // the inverse function, not the inverse value
    this.#spaces();
    if (this.#text.startsWith("\\left", this.#at)) this.#at += 5;
    this.#spaces();
    let of: string;
    if (this.#peek() === "(") {
      this.#at++;
      of = this.formula(() => this.#peek() === ")" || this.#text.startsWith("\\right)", this.#at), depth + 1);
      this.#at += this.#peek() === ")" ? 1 : "\\right)".length;
    } else if (this.#peek() === "{") {
      of = this.#argument(depth);
    } else {
      // Up to the end of the product: \sin 2x + 1 is (sin 2x) + 1.
      of = this.formula(() => this.done || /[-+=<>,;)\]}±∪⦄|&]/.test(this.#peek()) || this.#endsProduct(), depth + 1);
    }
    if (of.trim() === "") throw new Unknown();
    const call = base === undefined ? `${FUNCTIONS[name]}(${of})` : `log((${of}),(${base}))`;
    return ` (${call})${power} `;
  }

  #endsProduct(): boolean {
    return /^\\(?:right|pm|cup|le|ge|leq|geq|lt|gt|ne|neq|\}|sin|cos|tan|log|ln)\b/.test(
      this.#text.slice(this.#at, this.#at + 8),
    );
  }

  /** An exponent: in LaTeX x^10 is x to the 1 times 0, but nobody who writes it means that. */
  #power(depth: number): string {
    const digits = /^\s*(\d{1,20})/.exec(this.#text.slice(this.#at, this.#at + 24));
    if (digits === null) return this.#argument(depth);
    this.#at += digits[0].length;
    return digits[1] as string;
  }

  /** {…}, or the single sign that stands for it. */
  #argument(depth: number): string {
    this.#spaces();
    if (this.done) throw new Unknown();
    if (this.#peek() === "{") {
      this.#at++;
      const inner = this.formula(() => this.#peek() === "}", depth + 1);
      this.#at++;
      return inner;
    }
    if (/\d/.test(this.#peek())) return this.#text[this.#at++] as string;
    // x^-2 and x^(n+1) as they are typed.
    if (this.#peek() === "-" || this.#peek() === "+") {
      const sign = this.#text[this.#at++] as string;
      const digits = /^\d+/.exec(this.#text.slice(this.#at, this.#at + 20))?.[0];
      if (digits === undefined) return sign + this.#argument(depth + 1);
      this.#at += digits.length;
      return sign + digits;
    }
    if (this.#peek() === "(") {
      this.#at++;
      const inner = this.formula(() => this.#peek() === ")", depth + 1);
      this.#at++;
      return inner;
    }
    if (/[A-Za-z]/.test(this.#peek())) return this.#text[this.#at++] as string;
    if (this.#peek() !== "\\" || depth > MAX_DEPTH) throw new Unknown();
    return this.#command("", depth + 1);
  }

  #bracketed(depth: number): string | undefined {
    this.#spaces();
    if (this.#peek() !== "[") return undefined;
    this.#at++;
    const inner = this.formula(() => this.#peek() === "]", depth + 1);
    this.#at++;
    return inner;
  }

  /** \text{ cm} behind something is a unit, "and" and "or" part a list. */
  #prose(before: string): string {
    const match = /^\s*\{([^{}\\]*)\}/.exec(this.#text.slice(this.#at, this.#at + 60));
    if (match === null || before.trim() === "") throw new Unknown();
    this.#at += match[0].length;
    return /^\s*(?:and|or)\s*$/.test(match[1] as string) ? "," : " ";
  }

  #matrix(depth: number): string {
    const name = /^\{([bpvBV]?matrix)\}/.exec(this.#text.slice(this.#at, this.#at + 20))?.[1];
    if (name === undefined || name.startsWith("v") || name.startsWith("V")) throw new Unknown();
    this.#at += name.length + 2;
    const closing = `\\end{${name}}`;
    let out = "⟦";
    const cellEnd = () =>
      this.#peek() === "&" || this.#text.startsWith("\\\\", this.#at) || this.#text.startsWith(closing, this.#at);
    for (;;) {
      out += this.formula(cellEnd, depth + 1);
      if (this.#text.startsWith(closing, this.#at)) break;
      out += this.#peek() === "&" ? "," : ";";
      this.#at += this.#peek() === "&" ? 1 : 2;
    }
    this.#at += closing.length;
    return `${out}⟧`;
  }

  #spaces(): void {
    while (/\s/.test(this.#peek())) this.#at++;
  }

  #peek(): string {
    return this.#text[this.#at] ?? "";
  }
}
