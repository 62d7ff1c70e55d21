import { expect, test } from "vitest";
import { op } from "../../src/torch/dispatch.ts";
import { zeros } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { checkLayers } from "./layers-check.ts";

test.each([
  ["float64", 1e-14],
  ["float32", 1e-6],
  ["bfloat16", 1e-2],
] as const)("fused layer parts equal the plain operators in %s", (dtype, tolerance) =>
  checkLayers("cpu", dtype, tolerance));

test("shapes that do not fit are refused", () => {
  scope(() => {
    expect(() => op("grove::rms_norm")(zeros([2, 3]), zeros([4]), 1e-6)).toThrow("expected weight [3], got [4]");
    expect(() => op("grove::swiglu_down")(zeros([2, 3]), zeros([2, 8]), zeros([3, 5]))).toThrow("gate_up [T, 2 I]");
  });
});
