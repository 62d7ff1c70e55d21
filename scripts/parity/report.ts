/** From what both sides found to the rows of the table. The bounds stand here. */

import { addTo, type ModelErrors, relativeError, type ShapeRun, type Squares } from "./ours.ts";
import type { Prepared } from "./prepare.ts";
import { type Cell, equalCell, errorCell, NOT_COMPARED, pairCell, type Row } from "./table.ts";

/** float32, relative in the Euclidean norm. */
const VALUES = 1e-5;
const GRADIENTS = 1e-4;
/** Resized pixels: grey levels apart at most, and the share that must be equal. */
const GREY_LEVELS = 1;
const EQUAL_PIXELS = 0.995;
/** bfloat16: our error over that of transformers in features, logits and logprobs, pooled over all inputs of a shape. */
const SLACK = 1.05;

export const COLUMNS = {
  float32: [
    "text",
    "ids",
    "resize",
    "pixels",
    "positions",
    "features",
    "logits",
    "logprobs",
    "gradients",
    "greedy",
    "export",
  ],
  bfloat16: ["text", "ids", "resize", "pixels", "positions", "features", "logits", "logprobs", "gradients", "export"],
};

/** What reference.py make found, by shape. */
export type PythonReport = Record<
  string,
  {
    draw: number;
    inputs: {
      text: string;
      ids: number[];
      positions: number[][]; // [3][L], by the original rule
      transformersPositions?: number[][];
      grids: { images: number[][]; videos: number[][] };
      resize: { largest: number; equal: number } | null;
      pixels: number | null;
      greedy?: number[];
    }[];
  }
>;

/** What reference.py check found. */
export type PythonCheck = Record<
  string,
  {
    missing_keys: string[];
    unexpected_keys: string[];
    mismatched_keys: string[];
    error_msgs: string[];
    processor: boolean;
    generation: boolean;
    tied: boolean;
    logits: number[];
  }
>;

export function reportRows(side: {
  shape: string;
  tied: boolean;
  prepared: readonly Prepared[];
  theirs: PythonReport[string];
  check: PythonCheck[string];
  run: ShapeRun;
}): Row[] {
  const { shape, prepared, theirs, check, run } = side;
  const rows = prepared.map((one, i): Row => {
    const found = theirs.inputs[i] as PythonReport[string]["inputs"][number];
    const cells = { ...promptCells(one, found), ...modelCells(run, i) };
    if (run.greedy !== null) cells.greedy = greedyCell(run.greedy[i] ?? [], found.greedy ?? []);
    cells.export = errorCell(check.logits[i] ?? Number.NaN, VALUES);
    return { shape, input: one.input.name, cells };
  });
  const sum: Row = { shape, input: run.theirs === null ? "all in one batch" : "all, pooled", cells: {} };
  if (run.theirs === null) {
    sum.cells.gradients = errorCell(run.batchGradients.worst, GRADIENTS);
  } else {
    for (const stage of ["features", "logits", "logprobs"] as const)
      sum.cells[stage] = pairCell(pool(run.errors, stage), pool(run.theirs, stage), SLACK);
    if (run.theirBatchGradients !== null)
      sum.cells.gradients = pairCell(run.batchGradients.typical, run.theirBatchGradients.typical, null); // docs/parity.md says why without a verdict
  }
  sum.cells.export = exportCell(check, side.tied);
  return [...rows, sum];
}

function promptCells(one: Prepared, found: PythonReport[string]["inputs"][number]): Record<string, Cell> {
  const { prompt } = one;
  const grids = (kind: "images" | "videos") => prompt[kind].map(({ grid }) => grid);
  const sameGrids = same(grids("images"), found.grids.images) && same(grids("videos"), found.grids.videos);
  const length = prompt.inputIds.length;
  const axes = [0, 1, 2].map((axis) => Array.from(prompt.positions.subarray(axis * length, (axis + 1) * length)));
  const theirs = found.transformersPositions;
  const positions = same(axes, found.positions) && (theirs === undefined || same(axes, theirs));
  const { resize, pixels } = found;
  return {
    text: equalCell(one.text === found.text),
    ids: equalCell(same(Array.from(prompt.inputIds), found.ids)),
    resize:
      resize === null
        ? NOT_COMPARED
        : {
            text: resize.equal === 1 ? "=" : `${(100 * resize.equal).toFixed(2)} %, ${resize.largest}`,
            pass: resize.largest <= GREY_LEVELS && resize.equal >= EQUAL_PIXELS,
          },
    pixels:
      pixels === null ? NOT_COMPARED : sameGrids ? errorCell(pixels, 1e-6) : { text: "grids differ", pass: false },
    positions: { ...equalCell(positions), text: positions ? (one.input.corner ? "= original" : "=") : "differ" },
  };
}

function modelCells(run: ShapeRun, i: number): Record<string, Cell> {
  const { features, logits, logprobs, gradients } = run.errors[i] as ModelErrors;
  const theirs = run.theirs?.[i];
  const cell = (stage: "features" | "logits" | "logprobs", found: Squares | null): Cell => {
    if (found === null) return NOT_COMPARED;
    const other = theirs?.[stage];
    return other ? pairCell(relativeError(found), relativeError(other), null) : errorCell(relativeError(found), VALUES);
  };
  const gradientCell = (): Cell => {
    if (gradients === null) return NOT_COMPARED;
    if (!theirs) return errorCell(gradients.worst, GRADIENTS);
    return theirs.gradients ? pairCell(gradients.typical, theirs.gradients.typical, null) : NOT_COMPARED;
  };
  return {
    features: cell("features", features),
    logits: cell("logits", logits),
    logprobs: cell("logprobs", logprobs),
    gradients: gradientCell(),
  };
}

function greedyCell(ours: readonly number[], theirs: readonly number[]): Cell {
  const equal = ours.findIndex((id, t) => id !== theirs[t]);
  const first = equal < 0 ? Math.min(ours.length, theirs.length) : equal;
  return { text: `${first}/${theirs.length}`, pass: first === theirs.length && ours.length === theirs.length };
}

function exportCell(check: PythonCheck[string], tied: boolean): Cell {
  const problems = [
    ...(["missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"] as const).flatMap((kind) =>
      check[kind].map((name) => `${kind}: ${name}`),
    ),
    ...(check.processor ? [] : ["processor files differ"]),
    ...(check.generation ? [] : ["generation_config.json differs"]),
    ...(check.tied === tied ? [] : ["the head's tie differs"]),
  ];
  return { text: problems.length === 0 ? "loads" : problems.join("; "), pass: problems.length === 0 };
}

function pool(errors: readonly ModelErrors[], stage: "features" | "logits" | "logprobs"): number {
  return relativeError(
    errors.reduce<Squares>((sum, one) => (one[stage] === null ? sum : addTo(sum, one[stage])), {
      difference: 0,
      size: 0,
    }),
  );
}

function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
