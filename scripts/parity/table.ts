/** Cells of the report: a measured number against its bound, and the table they make. */

export interface Cell {
  /** What is printed. */
  text: string;
  /** null: not compared. */
  pass: boolean | null;
}

export const NOT_COMPARED: Cell = { text: "-", pass: null };

export function equalCell(equal: boolean): Cell {
  return { text: equal ? "=" : "differ", pass: equal };
}

/** A relative error that must not exceed its bound. NaN fails. */
export function errorCell(error: number, bound: number): Cell {
  return { text: error.toExponential(1), pass: error <= bound };
}

/** Two errors of which the first must not exceed the second times `slack`. */
export function pairCell(ours: number, theirs: number, slack: number | null): Cell {
  return {
    text: `${ours.toExponential(2)} / ${theirs.toExponential(2)}`,
    pass: slack === null ? null : ours <= theirs * slack,
  };
}

export interface Row {
  shape: string;
  input: string;
  cells: Record<string, Cell>;
}

/** The table as text; a failing cell ends with "!". */
export function formatTable(rows: readonly Row[], columns: readonly string[]): string {
  const header = ["shape", "input", ...columns];
  const body = rows.map(({ shape, input, cells }) => [
    shape,
    input,
    ...columns.map((column) => {
      const { text, pass } = cells[column] ?? NOT_COMPARED;
      return pass === false ? `${text} !` : text;
    }),
  ]);
  const widths = header.map((title, i) =>
    Math.max(...[header, ...body].map((line) => (line[i] ?? "").length), title.length),
  );
  const format = (line: readonly string[]) =>
    line
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join("  ")
      .trimEnd();
  return [format(header), format(widths.map((width) => "-".repeat(width))), ...body.map(format)].join("\n");
}

export function failures(rows: readonly Row[]): string[] {
  return rows.flatMap(({ shape, input, cells }) =>
    Object.entries(cells)
      .filter(([, { pass }]) => pass === false)
      .map(([stage, { text }]) => `${stage} of "${input}" (${shape}): ${text}`),
  );
}
