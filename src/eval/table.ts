/** Tables of text. */

/** Longest name of a part that a table shows whole. */
const NAME_WIDTH = 30;

/** Lays cells out in columns, the first aligned to the left, the others to the right, with a rule under the head. */
export function alignTable(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  const lines = rows.map((row) =>
    widths
      .map((width, column) => (column === 0 ? (row[0] ?? "").padEnd(width) : (row[column] ?? "").padStart(width)))
      .join("  ")
      .trimEnd(),
  );
  lines.splice(1, 0, widths.map((width) => "-".repeat(width)).join("  "));
  return lines.join("\n");
}

/** A name cut to the width of a table's first column. */
export function short(name: string, width = NAME_WIDTH): string {
  const characters = [...name];
  return characters.length <= width ? name : `${characters.slice(0, width - 1).join("")}…`;
}
