/** One HTML file that needs nothing else: no network, no library, no script. Pictures are SVG in the page; a pointer over them shows more. */

import { escapeXml } from "../eval/plot.ts";

export interface Section {
  title: string;
  /** Plain text below the title. */
  note?: string;
  /** HTML or SVG, put in as it is. */
  body: string;
}

const STYLE = `
body { font: 14px/1.45 Helvetica, Arial, sans-serif; color: #222; max-width: 1100px; margin: 24px auto; padding: 0 16px; }
h1 { font-size: 22px; } h2 { font-size: 17px; margin: 32px 0 6px; }
p.note { color: #555; margin: 4px 0 10px; max-width: 860px; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 3px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e3e3; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #999; } tr:hover td { background: #eef4fa; }
pre { background: #f5f5f5; padding: 10px; overflow-x: auto; }
svg .trial:hover { stroke-width: 5; opacity: 1; stroke: #000; }
`;

export function htmlPage(title: string, sections: readonly Section[]): string {
  const body = sections.map(({ title, note, body }) => {
    const text = note === undefined ? "" : `\n<p class="note">${escapeXml(note)}</p>`;
    return `<section>\n<h2>${escapeXml(title)}</h2>${text}\n<div class="wide">\n${body}\n</div>\n</section>`;
  });
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>${escapeXml(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${escapeXml(title)}</h1>
${body.join("\n")}
</body>
</html>
`;
}

/** Rows of cells; the first row is the head. */
export function htmlTable(rows: readonly (readonly string[])[]): string {
  const row = (cells: readonly string[], tag: "th" | "td") =>
    `<tr>${cells.map((cell) => `<${tag}>${escapeXml(cell)}</${tag}>`).join("")}</tr>`;
  return `<table>\n${rows.map((cells, i) => row(cells, i === 0 ? "th" : "td")).join("\n")}\n</table>`;
}
