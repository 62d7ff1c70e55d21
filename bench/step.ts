/**
 * What a question costs in training: the reference's log-probabilities, the policy's forward and backward pass, with the prompt computed once per
 * group and with it once per completion (the plain path, `trainer.sharedPrefix=false`), against the operations that the shapes need and the rate of
 * a large matrix product measured in the same run. Random weights.
 *
 *   npm run bench -- step --shape qwen2-vl-7b [--questions 4] [--prompt 931] [--group 8] [--new-tokens 128] [--recompute none|norms|mlp|layer]
 *                         [--plain] [--repeats 3] [--device cuda] [--trace file.json] [--out file.json]
 *
 * As in training, the questions of a batch follow each other without a wait for the device: first all of the reference's, then all of the policy's.
 * Times are a question's share of them.
 * --trace also writes a trace of one more batch, for chrome://tracing, and prints its kernels.
 *
 * On the CPU (`--device cpu --shape tiny`) it runs in float32 and says little: that is for trying it out.
 */

import { parseArgs } from "node:util";
import { type Packed, packGroups } from "../src/model/packed.ts";
import { Qwen2VL } from "../src/model/qwen2vl/model.ts";
import { LEVELS } from "../src/model/recompute.ts";
import { memoryStats, resetPeakMemory, synchronize } from "../src/torch/cuda.ts";
import type { Device } from "../src/torch/dtype.ts";
import { full, zero_, zerosLike } from "../src/torch/ops.ts";
import { keep, scope } from "../src/torch/scope.ts";
import { recordTrace } from "../src/torch/trace.ts";
import { forwardFlops } from "./lib/flops.ts";
import { measureMatmul } from "./lib/hardware.ts";
import { environment, spread, writeResult } from "./lib/report.ts";
import { seedPrompts, shapeConfig } from "./lib/shapes.ts";
import { traceTable } from "./lib/trace.ts";

const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "qwen2-vl-7b" },
    questions: { type: "string", default: "4" },
    prompt: { type: "string", default: "931" },
    group: { type: "string", default: "8" },
    "new-tokens": { type: "string", default: "128" },
    recompute: { type: "string", default: "none" },
    plain: { type: "boolean", default: false },
    repeats: { type: "string", default: "3" },
    device: { type: "string", default: "cuda" },
    trace: { type: "string" },
    out: { type: "string" },
  },
});
const [Q, P, G, N, repeats] = [values.questions, values.prompt, values.group, values["new-tokens"], values.repeats].map(
  Number,
) as [number, number, number, number, number];
const recompute = LEVELS.find((level) => level === values.recompute);
if (recompute === undefined) throw new Error(`--recompute ${values.recompute}: expected ${LEVELS.join(", ")}`);
const say = (line: string) => process.stdout.write(`${line}\n`);

const device = values.device as Device;
const dtype = device === "cpu" ? "float32" : "bfloat16";
const matmulTflops = measureMatmul(device);
const config = shapeConfig(values.shape);
using policy = Qwen2VL.random(config, { device, dtype, seed: 1 });
using reference = policy.clone();
const gradients = policy.parameters.map(({ tensor }) => {
  tensor.setRequiresGrad(true);
  tensor.setGrad(keep(zerosLike(tensor)));
  return tensor.grad!;
});

const groups = seedPrompts(Q, P).map((prompt, q) => ({
  prompt,
  completions: Array.from({ length: G }, (_, g) =>
    Int32Array.from({ length: N }, (_, t) => 100 + ((7919 * ((q * G + g) * N + t)) % 150_000)),
  ),
}));
const shared = groups.map((group) => packGroups([group]));
const single = groups.flatMap(({ prompt, completions }) =>
  completions.map((ids) => packGroups([{ prompt, completions: [ids] }])),
);

/** Seconds a question until the device is done, and until the host had enqueued everything. */
interface Phase {
  seconds: number;
  hostSeconds: number;
}

function timed(run: () => void): Phase {
  synchronize();
  const started = performance.now();
  run();
  const enqueued = performance.now();
  synchronize();
  return { seconds: (performance.now() - started) / 1000 / Q, hostSeconds: (enqueued - started) / 1000 / Q };
}

function score(packs: readonly Packed[]): void {
  for (const pack of packs) scope(() => reference.pass(pack, { grad: false })[Symbol.dispose]());
}

/** Forward and backward of every pack. */
function update(packs: readonly Packed[]): void {
  for (const pack of packs) {
    scope(() => {
      using pass = policy.pass(pack, { grad: true, recompute });
      pass.backward(full(pass.logprobs.shape, 1 / (G * N), { device }));
    });
  }
}

function forwardOnly(packs: readonly Packed[]): void {
  for (const pack of packs) scope(() => policy.pass(pack, { grad: true, recompute })[Symbol.dispose]());
}

function measure(packs: readonly Packed[]) {
  const runs = Array.from({ length: repeats + 1 }, () => {
    for (const gradient of gradients) zero_(gradient);
    return {
      reference: timed(() => score(packs)),
      forward: timed(() => forwardOnly(packs)),
      update: timed(() => update(packs)),
    };
  }).slice(1);
  const of = (pick: (run: (typeof runs)[0]) => number) => spread(runs.map(pick));
  return {
    referenceS: of((run) => run.reference.seconds),
    forwardS: of((run) => run.forward.seconds),
    updateS: of((run) => run.update.seconds), // forward and backward
    updateHostS: of((run) => run.update.hostSeconds),
    questionS: of((run) => run.reference.seconds + run.update.seconds),
  };
}

resetPeakMemory();
const ours = measure(shared);
const peakGib = memoryStats().peak / 2 ** 30;
const plain = values.plain ? measure(single) : null;

const { text, vision, head } = forwardFlops(config, shared[0]!);
const forward = text + vision + head;
const flops = 4 * forward; // the reference's forward, the policy's, and a backward of twice as many
const tflops = flops / ours.questionS.median / 1e12;
const result = {
  benchmark: "step",
  ...environment(device),
  ...{ shape: values.shape, dtype, recompute, questions: Q, promptTokens: P, group: G, newTokens: N, repeats },
  matmulTflops,
  forwardFlops: { text, vision, head },
  flops,
  boundS: flops / matmulTflops / 1e12,
  ...ours,
  tflops,
  shareOfMatmul: tflops / matmulTflops,
  peakGib,
  ...(plain && { plain, plainOverShared: plain.updateS.median / ours.updateS.median }),
};
const ms = ({ median, min, max }: { median: number; min: number; max: number }) =>
  `${(1000 * median).toFixed(0)} ms (${(1000 * min).toFixed(0)} to ${(1000 * max).toFixed(0)})`;
say(
  `${values.shape}, ${Q} questions, prompts of ${P}, ${G} x ${N} tokens, recompute ${recompute}; a large product ${matmulTflops.toPrecision(3)} TFLOP/s`,
);
say(`  question  ${ms(ours.questionS)}; bound ${(1000 * result.boundS).toFixed(0)} ms`);
say(
  `            ${(flops / 1e12).toPrecision(3)} TFLOP, ${(100 * result.shareOfMatmul).toFixed(1)} % of the product's rate`,
);
say(
  `  reference ${ms(ours.referenceS)}, policy forward ${ms(ours.forwardS)}, forward and backward ${ms(ours.updateS)}`,
);
say(`  the host needs ${ms(ours.updateHostS)} for the latter; peak ${peakGib.toFixed(1)} GiB`);
if (plain) say(`  one row per completion: ${ms(plain.updateS)}, ${result.plainOverShared?.toFixed(2)} x as long`);
if (values.trace !== undefined) {
  const { summary } = await recordTrace(values.trace, () => {
    score(shared);
    update(shared);
  });
  for (const line of traceTable(summary)) say(line);
}
if (values.out !== undefined) writeResult(values.out, result);
