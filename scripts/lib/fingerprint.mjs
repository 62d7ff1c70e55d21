/** Cheap change detection: names, sizes and modification times of files, no contents. */

import { readdirSync, statSync } from "node:fs";
import path from "node:path";

/**
 * One line for each file at or below the given paths, sorted; a missing path has a line too, so that its appearance is a change.
 * @param {string[]} paths
 */
export function fingerprint(paths) {
  return paths.flatMap(linesOf).sort().join("\n");
}

function linesOf(file) {
  let stat;
  try {
    stat = statSync(file);
  } catch {
    return [`${file} missing`];
  }
  if (!stat.isDirectory()) return [`${file} ${stat.size} ${Math.round(stat.mtimeMs)}`];
  return readdirSync(file).flatMap((name) => linesOf(path.join(file, name)));
}
