/** What grove::moving_average_ refuses; what it computes is in test/trainer/moving-reference.test.ts. */

import { expect, test } from "vitest";
import { op } from "../../src/torch/dispatch.ts";
import { cast, zeros } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import type { DType } from "../../src/torch/tensor.ts";

const movingAverage_ = op("grove::moving_average_");

test.each([
  ["other dtypes", "float32", [4], 0.5, 0, /expected dtype bfloat16 of x and y, got BFloat16, Float/],
  ["other sizes", "bfloat16", [5], 0.5, 0, /expected x and y \[N\], contiguous and on one device, got \[4\], \[5\]/],
  ["other ranks", "bfloat16", [2, 2], 0.5, 0, /expected x and y \[N\]/],
  ["a share that is none", "bfloat16", [4], 1.5, 0, /share must be between 0 and 1, got 1.5/],
  ["a place before the parameter", "bfloat16", [4], 0.5, -1, /begin must be 0 or more, got -1/],
] as const)("%s", (_, dtype, shape, share, begin, message) => {
  scope(() => {
    const x = cast(zeros([4]), "bfloat16");
    const y = cast(zeros([...shape]), dtype as DType);
    expect(() => movingAverage_(x, y, share, 1, 2, begin, 0)).toThrow(message);
  });
});
