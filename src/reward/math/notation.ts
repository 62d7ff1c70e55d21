/** The words and signs that formulas are written in, for src/reward/math/plain.ts. */

const GREEK =
  "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega";
export const GREEK_NAMES = new Set(GREEK.split(" "));

/** Functions by the names they go by, to mathjs's. */
export const FUNCTIONS: Readonly<Record<string, string>> = {
  ...Object.fromEntries(
    "sin cos tan cot sec csc sinh cosh tanh asin acos atan exp abs sqrt".split(" ").map((name) => [name, name]),
  ),
  arcsin: "asin",
  arccos: "acos",
  arctan: "atan",
  ln: "log",
  log: "log10",
};

export const WORDS: Readonly<Record<string, string>> = {
  pi: "pi",
  infty: "Infinity",
  infinity: "Infinity",
  inf: "Infinity",
};

/** Commands that stand for a sign. */
export const SIGNS: Readonly<Record<string, string>> = {
  cdot: "*",
  times: "*",
  ast: "*",
  div: "/",
  pm: "±",
  le: "<=",
  leq: "<=",
  leqslant: "<=",
  ge: ">=",
  geq: ">=",
  geqslant: ">=",
  lt: "<",
  gt: ">",
  ne: "!=",
  neq: "!=",
  cup: "∪",
  in: "∈",
  "{": "⦃",
  "}": "⦄",
  lbrace: "⦃",
  rbrace: "⦄",
  lbrack: "[",
  rbrack: "]",
  emptyset: "⦃⦄",
  varnothing: "⦃⦄",
  "%": "%",
};

/** Commands that change how a formula looks and nothing else. */
export const LOOKS = new Set(
  "left right big Big bigl bigr Bigl Bigr bigg Bigg displaystyle textstyle limits quad qquad , ; : ! $ degree circ".split(
    " ",
  ),
);
LOOKS.add(" ");

/** Commands whose argument is the formula itself. */
export const WRAPPERS = new Set([
  "boxed",
  "fbox",
  "mathbf",
  "mathit",
  "mathsf",
  "mathbb",
  "mathcal",
  "bm",
  "boldsymbol",
]);

/** Commands whose argument is prose: a unit, or "and". */
export const PROSE = new Set(["text", "mathrm", "textbf", "textrm", "textit", "mbox", "operatorname", "rm"]);

/** Signs as they are typed. */
export const TYPED: Readonly<Record<string, string>> = {
  "×": "*",
  "·": "*",
  "⋅": "*",
  "÷": "/",
  "−": "-",
  "–": "-",
  π: "pi",
  "∞": " Infinity ",
  "≤": "<=",
  "≥": ">=",
  "≠": "!=",
  "²": "^2",
  "³": "^3",
  "√": "\\sqrt ",
  "°": "",
  "½": "((1)/(2))",
};

export const UNITS =
  /(?<=\d\s*)(?:\s|\\ |~)*(?:[cmk]m|kg|mg|ml|sq|units?|inch(?:es)?|feet|foot|miles?|met(?:er|re)s?|centimet(?:er|re)s?|grams?|dollars?|cents?|degrees?|seconds?|minutes?|hours?|days?|weeks?|months?|years?)(?:\^\{?[23]\}?)?$/;
