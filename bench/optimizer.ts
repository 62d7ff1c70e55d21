/**
 * One AdamW update of all weights of a model, its gradient norm included: milliseconds against the bytes it must move and the bandwidth of a copy
 * measured in the same run. Gradients are random; weights lie in tensors of their own, as in training. Beside it what an average of the policy takes
 * that moves (trainer.referenceDecay), which reads two copies of the weights and writes one.
 *
 *   npm run bench -- optimizer --shape qwen2-vl-7b [--device cuda|cpu] [--dtype bfloat16|float32] [--moments float32,bfloat16,int8]
 *                              [--offload none|cpu] [--max-parameters 1e9] [--repeats 10] [--out file.json]
 *
 * An update must read every gradient for the norm, and again with weight, low bits and moments, and write the latter. --max-parameters takes only as
 * many of the model's parameters, from the first on. With --offload cpu the moments' bytes cross the bus and are told apart.
 */

import { parseArgs } from "node:util";
import { configSchema } from "../src/config/schema.ts";
import type { Parameter } from "../src/model/parameter.ts";
import { parameterSpecs } from "../src/model/qwen2vl/parameters.ts";
import { memoryStats, resetPeakMemory, synchronize } from "../src/torch/cuda.ts";
import { copy_, randn, zeros } from "../src/torch/ops.ts";
import { keep, scope } from "../src/torch/scope.ts";
import type { Device, DType } from "../src/torch/tensor.ts";
import { bytesPerParameter } from "../src/trainer/flat-layout.ts";
import { moveReference } from "../src/trainer/moving-reference.ts";
import { AdamW } from "../src/trainer/optimizer.ts";
import { environment, type Spread, spread, writeResult } from "./lib/report.ts";
import { shapeConfig } from "./lib/shapes.ts";

const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "qwen2-vl-7b" },
    device: { type: "string", default: "cuda" },
    dtype: { type: "string", default: "bfloat16" },
    moments: { type: "string", default: "float32,bfloat16,int8" },
    offload: { type: "string", default: "none" },
    "max-parameters": { type: "string", default: "1e12" },
    repeats: { type: "string", default: "10" },
    out: { type: "string" },
  },
});
const device = values.device as Device;
const repeats = Number(values.repeats);
const say = (line: string) => process.stdout.write(`${line}\n`);

/** Milliseconds of a call and of what it leaves to the device, once to warm up and then `repeats` times. */
function timeMs(run: () => void): Spread {
  const times = Array.from({ length: repeats + 1 }, () => {
    synchronize();
    const start = performance.now();
    run();
    synchronize();
    return performance.now() - start;
  });
  return spread(times.slice(1));
}

/** Bytes read and written a second by a copy of `bytes` within the device, 1e12. */
function copyRate(bytes: number): number {
  return scope(() => {
    const [from, to] = [0, 1].map(() => zeros([bytes / 4], { device }));
    return (2 * bytes) / timeMs(() => void copy_(to!, from!)).median / 1e9;
  });
}

const limit = Number(values["max-parameters"]);
let count = 0;
const specs = parameterSpecs(shapeConfig(values.shape)).filter(({ shape }) => {
  const size = shape.reduce((a, b) => a * b, 1);
  if (count + size > limit) return false;
  count += size;
  return true;
});
const copyTbPerS = copyRate(Math.min(2 ** 32, 4 * Math.ceil(count / 2)));
say(
  `${values.shape}: ${specs.length} parameters, ${count} weights; copy ${copyTbPerS.toFixed(3)} TB/s (read and write)`,
);

const results = values.moments.split(",").map((moments) => {
  const config = configSchema.parse({
    model: { path: "unused" },
    device,
    dtype: values.dtype,
    optimizer: { moments, offload: values.offload, maxGradNorm: 1 },
  });
  const each = bytesPerParameter(config);
  // The gradient twice; weights, low bits and moments read and written.
  const onDevice = count * (2 * each.gradients + 2 * (each.gradients + each.device));
  const overBus = count * 2 * each.host;

  resetPeakMemory();
  const parameters: Parameter[] = specs.map(({ name, shape }) => {
    return { name, parts: [], tensor: scope(() => keep(randn(shape, { dtype: config.dtype, device }))) };
  });
  const optimizer = new AdamW(parameters, config.optimizer);
  for (const { tensor } of parameters) {
    scope(() => void copy_(tensor.grad!, randn(tensor.shape, { dtype: config.dtype, device })));
  }
  const norm = timeMs(() => optimizer.gradNorm().free());
  const update = timeMs(() => {
    using gradNorm = optimizer.gradNorm();
    optimizer.step(1e-6, gradNorm);
  });
  const hostMs = hostTimeMs(optimizer);
  const peakGib = memoryStats().peak / 2 ** 30;
  optimizer[Symbol.dispose]();
  for (const { tensor } of parameters) tensor.free();

  const share = onDevice / update.median / 1e9 / copyTbPerS;
  say(
    `  ${moments.padEnd(8)} ${update.median.toFixed(2)} ms (norm ${norm.median.toFixed(2)}, host ${hostMs.toFixed(2)}), ` +
      `${(onDevice / 2 ** 30).toFixed(2)} GiB: ${(100 * share).toFixed(1)} % of copying, ${(1 / share).toFixed(2)} x its bytes` +
      `${overBus > 0 ? `; ${(overBus / update.median / 1e6).toFixed(1)} GB/s over the bus` : ""}; peak ${peakGib.toFixed(1)} GiB`,
  );
  return { moments, ms: update, normMs: norm, hostMs, bytes: onDevice, busBytes: overBus, shareOfCopy: share, peakGib };
});

const [average, policy] = [0, 1].map((): Parameter[] =>
  specs.map(({ name, shape }) => {
    return { name, parts: [], tensor: scope(() => keep(randn(shape, { dtype: values.dtype as DType, device }))) };
  }),
) as [Parameter[], Parameter[]];
const move = timeMs(() => moveReference(average, policy, { decay: 0.995, seed: 1, step: 0 }));
const moveBytes = count * 3 * (values.dtype === "bfloat16" ? 2 : 4);
const moveShare = moveBytes / move.median / 1e9 / copyTbPerS;
say(
  `  average  ${move.median.toFixed(2)} ms, ${(moveBytes / 2 ** 30).toFixed(2)} GiB: ${(100 * moveShare).toFixed(1)} % of copying, ` +
    `${(1 / moveShare).toFixed(2)} x its bytes`,
);
for (const { tensor } of [...average, ...policy]) tensor.free();

/** Milliseconds until the host has enqueued an update, the device being idle. */
function hostTimeMs(optimizer: AdamW): number {
  synchronize();
  using gradNorm = optimizer.gradNorm();
  const start = performance.now();
  optimizer.step(1e-6, gradNorm);
  const elapsed = performance.now() - start;
  synchronize();
  return elapsed;
}

if (values.out !== undefined) {
  const { shape, dtype, offload } = values;
  const head = { benchmark: "optimizer", ...environment(device), shape, dtype, offload, weights: count, copyTbPerS };
  const movingAverage = { ms: move, bytes: moveBytes, shareOfCopy: moveShare };
  writeResult(values.out, { ...head, results, movingAverage });
}
