/**
 * A rollout with random weights: seconds of prefill (vision tower included) and milliseconds of a decode step, against the bytes that a step
 * must read and the copy bandwidth measured in the same run. Completions run to the limit, but for a stray end token.
 *
 *   npm run bench -- rollout --shape qwen2-vl-7b [--questions 8] [--group 8] [--prompt 931] [--new-tokens 256] [--attention fused]
 *                            [--repeats 3] [--out file.json]
 *
 * A step must read the layers' and the head's weights once, every prompt's keys and values once, and each completion's own, half of its
 * final length on average.
 */

import { parseArgs } from "node:util";
import { packGroups } from "../src/model/packed.ts";
import { Qwen2VL } from "../src/model/qwen2vl/model.ts";
import { fusedDecodeFits } from "../src/rollout/fused-decode-plan.ts";
import { Sampler } from "../src/rollout/sampler.ts";
import { memoryStats, synchronize } from "../src/torch/cuda.ts";
import { copy_, mm, randn } from "../src/torch/ops.ts";
import { scope } from "../src/torch/scope.ts";
import { environment, spread, writeResult } from "./lib/report.ts";
import { seedPrompts, shapeConfig } from "./lib/shapes.ts";

const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "qwen2-vl-7b" },
    questions: { type: "string", default: "8" },
    group: { type: "string", default: "8" },
    prompt: { type: "string", default: "931" },
    "new-tokens": { type: "string", default: "256" },
    attention: { type: "string" },
    repeats: { type: "string", default: "3" },
    out: { type: "string" },
  },
});
const { shape } = values;
const [Q, G, P, N] = [values.questions, values.group, values.prompt, values["new-tokens"]].map(Number) as [
  number,
  number,
  number,
  number,
];
const say = (line: string) => process.stdout.write(`${line}\n`);

const copyTbPerS = measureCopy();
const matmulTflops = measureMatmul();
say(
  `copy ${copyTbPerS.toFixed(2)} TB/s (read and write), bf16 matrix product 8192^3 ${matmulTflops.toFixed(0)} TFLOP/s`,
);

const config = { ...shapeConfig(shape), eosTokenIds: [0] };
using model = Qwen2VL.random(config, { device: "cuda", dtype: "bfloat16", seed: 1 });
const attention = (values.attention ?? (fusedDecodeFits(model) ? "fused" : "plain")) as "fused" | "plain";
// the only end token is one of 152,000: hardly ever drawn, and the loop goes on for the others
const tokenizer = {
  vocabSize: config.text.vocabSize,
  eosTokenIds: [0],
  encode: () => Int32Array.of(151654),
  decode: () => "",
};
const prompts = seedPrompts(Q, P);
using sampler = new Sampler({ model, tokenizer, config: { maxConcurrent: Q * G }, attention });
const runs: { prefillS: number; msPerStep: number; wholeS: number; tokensPerS: number }[] = [];
let gap = Number.NaN;
for (let repeat = 0; repeat <= Number(values.repeats); repeat++) {
  synchronize();
  const started = performance.now();
  const groups = sampler.rolloutGroups(prompts, {
    groupSize: G,
    maxNewTokens: N,
    temperature: 1,
    topK: 0,
    topP: 1,
    seed: 1,
    step: repeat,
  });
  const wholeS = (performance.now() - started) / 1000;
  const { prefillS, decodeS, steps, tokens } = sampler.stats;
  if (repeat === 0)
    gap = logprobGap(groups); // the first run warms up
  else runs.push({ prefillS, msPerStep: (decodeS / steps) * 1000, wholeS, tokensPerS: tokens / decodeS });
}

const weightBytes = model.parameters
  .filter(
    ({ name }) => /^(model\.layers|model\.norm|lm_head)/.test(name) || (config.tieWordEmbeddings && /embed/.test(name)),
  )
  .reduce((sum, { tensor }) => sum + tensor.numel * 2, 0);
const kvBytesPerToken = 2 * 2 * config.text.numKvHeads * model.headDim * config.text.numLayers;
const stepBytes = weightBytes + (Q * P + (Q * G * N) / 2) * kvBytesPerToken;
const ms = spread(runs.map((run) => run.msPerStep));
const result = {
  benchmark: "rollout",
  ...environment("cuda"),
  shape,
  dtype: "bfloat16",
  attention,
  questions: Q,
  group: G,
  promptTokens: P,
  newTokens: N,
  repeats: runs.length,
  copyTbPerS,
  matmulTflops,
  stepBytes,
  boundMsPerStep: stepBytes / copyTbPerS / 1e9,
  msPerStep: ms,
  tbPerS: stepBytes / ms.median / 1e9,
  shareOfCopy: stepBytes / ms.median / 1e9 / copyTbPerS,
  tokensPerS: spread(runs.map((run) => run.tokensPerS)),
  prefillS: spread(runs.map((run) => run.prefillS)),
  wholeS: spread(runs.map((run) => run.wholeS)),
  peakGib: memoryStats().peak / 2 ** 30,
  logprobGapMean: gap,
};
say(
  `${shape}, ${Q} x ${G} completions, prompts of ${P} tokens, ${N} new tokens, ${attention} attention, ${runs.length} runs`,
);
say(
  `  decode   ${ms.median.toFixed(2)} ms a step (${ms.min.toFixed(2)} to ${ms.max.toFixed(2)}); bound ${result.boundMsPerStep.toFixed(2)}`,
);
say(
  `           ${result.tbPerS.toFixed(2)} TB/s = ${(100 * result.shareOfCopy).toFixed(0)} % of copying, ${result.tokensPerS.median.toFixed(0)} tokens/s`,
);
say(
  `  prefill  ${result.prefillS.median.toFixed(3)} s, the whole ${result.wholeS.median.toFixed(2)} s, peak ${result.peakGib.toFixed(1)} GiB`,
);
say(`  log-probabilities, sampler against trainer: mean |difference| ${gap.toExponential(2)}`);
if (values.out !== undefined) writeResult(values.out, result);

/** Mean |sampler - trainer| over the first question's completions, nats. */
function logprobGap(groups: ReturnType<Sampler["rolloutGroups"]>): number {
  const group = groups[0]!;
  const pack = packGroups([{ prompt: group.prompt, completions: group.completions.map(({ ids }) => ids) }]);
  using pass = model.pass(pack, { grad: false });
  const trainer = pass.logprobs.toNumbers();
  const sampled = group.completions.flatMap(({ logprobs }) => Array.from(logprobs));
  return trainer.reduce((sum, p, i) => sum + Math.abs(p - (sampled[i] as number)), 0) / trainer.length;
}

/** Bytes read and written a second by a copy within the device, 1e12. */
function measureCopy(): number {
  return scope(() => {
    const bytes = 2 ** 32;
    const from = randn([bytes / 2], { dtype: "bfloat16", device: "cuda" });
    const to = randn([bytes / 2], { dtype: "bfloat16", device: "cuda" });
    return (2 * bytes) / best(() => void copy_(to, from)) / 1e9;
  });
}

function measureMatmul(): number {
  return scope(() => {
    const n = 8192;
    const [a, b] = [0, 1].map(() => randn([n, n], { dtype: "bfloat16", device: "cuda" }));
    return (2 * n ** 3) / best(() => mm(a!, b!).free()) / 1e9;
  });
}

/** Milliseconds of one call, median of 7 batches of 10. */
function best(run: () => void): number {
  const times = Array.from({ length: 8 }, () => {
    synchronize();
    const started = performance.now();
    for (let i = 0; i < 10; i++) run();
    synchronize();
    return (performance.now() - started) / 10;
  });
  return spread(times.slice(1)).median;
}
