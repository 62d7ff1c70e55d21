/** The kernel behind a moving average against the CPU, bit for bit: odd sizes, parts that begin anywhere, memory that is not aligned, numbers that are none. */

import { expect } from "vitest";
import { op } from "../../src/torch/dispatch.ts";
import { cast, slice, to } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { type Device, fromArray } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";

const movingAverage_ = op("grove::moving_average_");

/** Numbers of all magnitudes; a few of them none. */
function numbers(count: number, factor: number): number[] {
  const rare = new Map([
    [7, Number.NaN],
    [11, Number.POSITIVE_INFINITY],
    [13, 0],
    [17, -0],
  ]);
  return Array.from({ length: count }, (_, i) => rare.get(i) ?? Math.sin(i * factor) * 2 ** ((i % 250) - 125));
}

function moved(device: Device, count: number, shift: number, begin: number, share: number): number[] {
  return scope(() => {
    const make = (factor: number) => {
      const whole = cast(fromArray(numbers(count + shift, factor), [count + shift]), "bfloat16");
      return slice(to(whole, { device }), 0, shift, count + shift);
    };
    return movingAverage_(make(1), make(1.7), share, 0xfedcba98, 0x89abcdef, begin, 5).toNumbers();
  });
}

gpuTest.each([1, 7, 8, 9, 255, 4096, 100_003])("%i elements", (count) => {
  for (const shift of [0, 1, 8])
    for (const begin of [0, 3, 8, 2 ** 33 + 5])
      for (const share of [0.005, 0.5, 1])
        expect(moved("cuda", count, shift, begin, share)).toEqual(moved("cpu", count, shift, begin, share));
});
