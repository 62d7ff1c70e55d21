/** What the device did, by kernel, as lines for a terminal. */

import type { TraceSummary } from "../../src/torch/trace.ts";

const ROWS = 30;
const WIDTH = 90;

export function traceTable(summary: TraceSummary | null): string[] {
  if (summary === null) return ["trace: could not be written"];
  const { seconds, busyS, kernels } = summary;
  const ms = (s: number) => (1000 * s).toFixed(2).padStart(9);
  return [
    `trace: ${(1000 * seconds).toFixed(1)} ms, the device busy ${((100 * busyS) / seconds).toFixed(1)} % of them`,
    "       ms  calls  us each  kernel",
    ...kernels
      .slice(0, ROWS)
      .map(
        ({ name, calls, seconds: s }) =>
          `${ms(s)} ${String(calls).padStart(6)} ${((1e6 * s) / calls).toFixed(1).padStart(8)}  ${shortened(name)}`,
      ),
  ];
}

/** Kernels' names are long by their template arguments; they differ in the beginning and at times in the end. */
function shortened(name: string): string {
  const plain = name.replaceAll(/\(anonymous namespace\)::|^void /g, "");
  return plain.length <= WIDTH ? plain : `${plain.slice(0, WIDTH - 30)}...${plain.slice(-27)}`;
}
