import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, test } from "vitest";

test("the benchmark of a training step runs and adds up", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "grove-bench-"));
  try {
    const out = path.join(folder, "step.json");
    const options = ["--shape", "tiny", "--device", "cpu", "--prompt", "760", "--group", "2", "--new-tokens", "4"];
    const main = path.join(import.meta.dirname, "../../bench/main.ts");
    execFileSync(process.execPath, [
      "--import",
      "tsx",
      main,
      "step",
      ...options,
      "--plain",
      "--repeats",
      "1",
      "--out",
      out,
    ]);
    const result = JSON.parse(readFileSync(out, "utf8"));
    const { text, vision, head } = result.forwardFlops;
    expect(result.flops).toBe(4 * (text + vision + head));
    expect(result.questionS.median).toBeCloseTo(result.referenceS.median + result.updateS.median, 9);
    expect(result.plainOverShared).toBeCloseTo(result.plain.updateS.median / result.updateS.median, 9);
    expect(result.shareOfMatmul).toBeGreaterThan(0);
  } finally {
    rmSync(folder, { recursive: true });
  }
}, 120_000);
