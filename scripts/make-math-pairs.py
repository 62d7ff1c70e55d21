"""Writes test/reward/math/pairs.json: pairs of a gold answer and an answer, whether they mean the same, and what math_verify says of them.

pip install math-verify (0.9.0 made the committed file); python3 scripts/make-math-pairs.py
The verdicts in the third column are a person's; math_verify's are the oracle's, right or not. test/reward/math/pairs.test.ts compares all three.
"""

import json
import logging
from importlib.metadata import version
from pathlib import Path

from math_verify import parse, verify

logging.disable(logging.CRITICAL)

PAIRS = [
    # whole numbers, decimals, thousands
    ("42", "42", True), ("42", "42.0", True), ("42", "43", False), ("-7", "−7", True), ("-7", "7", False),
    ("1,234,567", "1234567", True), ("1{,}234", "1234", True), ("1\\,000", "1000", True), ("1000", "1,000.0", True),
    ("12345678901234567890", "12345678901234567891", False), ("+5", "5", True), ("007", "7", True), (".5", "0.5", True),
    ("3.14", "3.1416", False), ("0.1", "0.10", True), ("5.", "5", True), ("1e3", "1000", True), ("1e999", "1e998", False),
    # fractions, mixed numbers, percent, scientific
    ("1/2", "0.5", True), ("\\frac{1}{2}", "\\dfrac{2}{4}", True), ("\\frac12", "1/2", True), ("\\frac{1}{3}", "0.333333", True),
    ("\\frac{1}{3}", "0.33", False), ("-\\frac{1}{2}", "\\frac{-1}{2}", True), ("2\\frac{3}{4}", "\\frac{11}{4}", True),
    ("0.\\overline{3}", "\\frac{1}{3}", True), ("0.1\\overline{6}", "\\frac{1}{6}", True), ("50\\%", "0.5", True), ("50\\%", "50", True),
    ("50\\%", "5", False), ("12.5\\%", "\\frac{1}{8}", True), ("3\\times10^4", "30000", True), ("3 \\cdot 10^{-2}", "0.03", True),
    ("6.02\\times 10^{23}", "6.02e23", True), ("\\frac{3}{0}", "\\frac{5}{0}", False),
    # roots, constants, powers, functions
    ("\\sqrt{8}", "2\\sqrt{2}", True), ("\\sqrt2", "1.41421356", True), ("\\sqrt2", "1.41", False), ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}", True),
    ("\\sqrt[3]{27}", "3", True), ("\\pi/2", "\\frac{\\pi}{2}", True), ("\\pi", "3.14", False), ("2\\pi r", "2r\\pi", True),
    ("2^{10}", "1024", True), ("e^{2}", "\\exp(2)", True), ("\\ln(e^3)", "3", True), ("\\log_2 8", "3", True), ("5!", "120", True),
    ("\\binom{5}{2}", "10", True), ("\\sin^2 x+\\cos^2 x", "1", True), ("\\sin(2x)", "2\\sin x\\cos x", True), ("\\tan x", "\\frac{\\sin x}{\\cos x}", True),
    ("|{-3}|", "3", True), ("4^{1/2}", "2", True), ("2^{-1}", "0.5", True), ("\\sin 30^\\circ", "\\sin 30", True), ("\\infty", "-\\infty", False),
    # expressions
    ("(x+1)^2", "x^2+2x+1", True), ("(x+1)^2", "x^2+1", False), ("x(y+z)", "xy+xz", True), ("\\frac{x^2-1}{x-1}", "x+1", True),
    ("\\sqrt{x^2}", "x", False), ("a+b", "b+a", True), ("a-b", "b-a", False), ("x", "y", False), ("2x", "x^2", False), ("\\alpha+1", "1+\\alpha", True),
    ("x_1+x_2", "x_2+x_1", True), ("x_1", "x_2", False), ("1+2i", "2i+1", True), ("\\frac{1}{i}", "-i", True), ("x^{10}", "x^{5}x^{5}", True),
    # equations, inequalities
    ("x=5", "5", True), ("5", "x=5", True), ("x=5", "y=5", False), ("y=2x+1", "2y=4x+2", True), ("y=2x+1", "y=2x+2", False), ("x+y=1", "y=1-x", True),
    ("x>3", "3<x", True), ("x>3", "(3,\\infty)", True), ("x\\geq 3", "(3,\\infty)", False), ("-1<x\\le 2", "(-1,2]", True),
    # sets, tuples, intervals, matrices
    ("\\{1,2,3\\}", "\\{3,1,2\\}", True), ("\\{1,2\\}", "\\{1,2,3\\}", False), ("1,2", "2,1", True), ("(1,2)", "(2,1)", False), ("(1,2)", "(1.0,2)", True),
    ("(1,2)", "[1,2]", False), ("[0,1)", "[0,1)", True), ("[0,1)", "(0,1]", False), ("(\\frac12,\\sqrt4)", "(0.5,2)", True),
    ("(-\\infty,1)\\cup(2,\\infty)", "(2,\\infty)\\cup(-\\infty,1)", True), ("\\{5\\}", "5", True), ("1\\pm\\sqrt{2}", "\\{1+\\sqrt2,1-\\sqrt2\\}", True),
    ("x=1 \\text{ or } x=2", "\\{1,2\\}", True), ("x\\in(0,1)", "(0,1)", True), ("\\emptyset", "\\{\\}", True),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}", True),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}", False),
    # units, wrapping, words
    ("10\\text{ cm}", "10", True), ("10 cm", "10", True), ("90^\\circ", "90", True), ("\\$5", "5", True), ("\\boxed{7}", "7", True),
    ("\\left(\\frac{1}{2}\\right)", "\\frac12", True), ("\\text{yes}", "\\text{Yes}", True), ("\\text{east}", "\\text{seat}", False), ("x", "\\text{no}", False),
]


def verdict(gold: str, answer: str) -> bool:
    return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


rows = [{"gold": g, "answer": a, "same": same, "mathVerify": verdict(g, a)} for g, a, same in PAIRS]
out = Path(__file__).parents[1] / "test/reward/math/pairs.json"
lines = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in rows)
out.write_text(f'{{\n  "mathVerify": "{version("math-verify")}",\n  "pairs": [\n{lines}\n  ]\n}}\n')
print(len(rows), "pairs;", sum(r["same"] == r["mathVerify"] for r in rows), "as math_verify judges them")
