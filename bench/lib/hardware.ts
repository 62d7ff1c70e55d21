/** What the card does at best, measured in the run that is compared with it. */

import { cudaAvailable, Event, synchronize } from "../../src/torch/cuda.ts";
import type { Device } from "../../src/torch/dtype.ts";
import { copy_, mm, randn } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { spread } from "./report.ts";

/** Bytes read and written a second by a copy within the device, 1e12. */
export function measureCopy(): number {
  return scope(() => {
    const bytes = 2 ** 32;
    const [from, to] = [0, 1].map(() => randn([bytes / 2], { dtype: "bfloat16", device: "cuda" }));
    return (2 * bytes) / deviceMs(() => void copy_(to!, from!)) / 1e9;
  });
}

/** Rate of a matrix product, 1e12 operations a second: bfloat16, 8192^3; on the CPU float32, 1024^3. */
export function measureMatmul(device: Device = "cuda"): number {
  return scope(() => {
    const [n, dtype] = device === "cpu" ? ([1024, "float32"] as const) : ([8192, "bfloat16"] as const);
    const [a, b] = [0, 1].map(() => randn([n, n], { dtype, device }));
    return (2 * n ** 3) / deviceMs(() => mm(a!, b!).free()) / 1e9;
  });
}

/** Milliseconds of one call on the device (without CUDA: of the call), median of 7 batches of 10 after one that warms up. */
export function deviceMs(run: () => void): number {
  if (!cudaAvailable()) {
    const batch = () => {
      const started = performance.now();
      for (let i = 0; i < 10; i++) run();
      return (performance.now() - started) / 10;
    };
    return spread(Array.from({ length: 8 }, batch).slice(1)).median;
  }
  const times = Array.from({ length: 8 }, () => {
    using start = new Event().record();
    for (let i = 0; i < 10; i++) run();
    using end = new Event().record();
    return start.elapsedMs(end) / 10;
  });
  synchronize();
  return spread(times.slice(1)).median;
}
