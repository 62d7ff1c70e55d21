/**
 * A rollout with random weights: seconds of prefill (vision tower included) and milliseconds of a decode step, against the bytes that a step
 * must read and the copy bandwidth measured in the same run. Completions run to their limit, but for a stray end token.
 *
 *   npm run bench -- rollout --shape qwen2-vl-7b [--questions 8] [--group 8] [--prompt 931] [--new-tokens 256] [--slots 64]
 *                            [--lengths full|lognormal] [--sigma 0.5] [--attention fused|per-sequence|plain] [--deterministic]
 *                            [--repeats 3] [--trace file.json] [--out file.json]
 *
 * A step must read the layers' and the head's weights once, every prompt's keys and values once, and each completion's own, half of its
 * final length on average. `--lengths lognormal` ends completions at lengths of mean 128 (before the cap at --new-tokens) that the host does not know
 * in advance; the same questions are then run at full length too, as many as fill the slots, and tokens a second compared.
 */

import { parseArgs } from "node:util";
import { Qwen2VL } from "../src/model/qwen2vl/model.ts";
import { fusedDecodeFits } from "../src/rollout/fused-decode-plan.ts";
import { Sampler, type SamplerOptions } from "../src/rollout/sampler.ts";
import { memoryStats, resetPeakMemory } from "../src/torch/cuda.ts";
import { recordTrace } from "../src/torch/trace.ts";
import { logprobGap } from "./lib/gap.ts";
import { measureCopy, measureMatmul } from "./lib/hardware.ts";
import { logNormalLengths } from "./lib/lengths.ts";
import { environment, spread, writeResult } from "./lib/report.ts";
import { runRollouts, stepBytes } from "./lib/rollouts.ts";
import { drawMs } from "./lib/sampling.ts";
import { seedPrompts, shapeConfig } from "./lib/shapes.ts";
import { traceTable } from "./lib/trace.ts";

const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "qwen2-vl-7b" },
    questions: { type: "string", default: "8" },
    group: { type: "string", default: "8" },
    prompt: { type: "string", default: "931" },
    "new-tokens": { type: "string", default: "256" },
    slots: { type: "string" },
    lengths: { type: "string", default: "full" },
    sigma: { type: "string", default: "0.5" },
    attention: { type: "string" },
    deterministic: { type: "boolean", default: false },
    repeats: { type: "string", default: "3" },
    trace: { type: "string" },
    out: { type: "string" },
  },
});
const { shape, deterministic } = values;
const [Q, G, P, N] = [values.questions, values.group, values.prompt, values["new-tokens"]].map(Number) as [
  number,
  number,
  number,
  number,
];
const slots = Number(values.slots ?? Q * G);
const say = (line: string) => process.stdout.write(`${line}\n`);

const copyTbPerS = measureCopy();
const matmulTflops = measureMatmul();
say(`copy ${copyTbPerS.toFixed(2)} TB/s (read and write), bf16 product 8192^3 ${matmulTflops.toFixed(0)} TFLOP/s`);

const config = { ...shapeConfig(shape), eosTokenIds: [0] };
using model = Qwen2VL.random(config, { device: "cuda", dtype: "bfloat16", seed: 1 });
const attention = (values.attention ?? (fusedDecodeFits(model) ? "fused" : "plain")) as NonNullable<
  SamplerOptions["attention"]
>;
// the only end token is one of 152,000: hardly ever drawn, and the loop goes on for the others
const tokenizer = {
  vocabSize: config.text.vocabSize,
  eosTokenIds: [0],
  encode: () => Int32Array.of(151654),
  decode: () => "",
};
using sampler = new Sampler({ model, tokenizer, config: { maxConcurrent: slots, deterministic }, attention });
const prompts = seedPrompts(Q, P);
const repeats = Number(values.repeats);

resetPeakMemory();
const sigma = Number(values.sigma);
const limits = values.lengths === "lognormal" ? { limitOf: logNormalLengths(128, sigma, N) } : {};
const main = runRollouts(sampler, prompts, { groupSize: G, maxNewTokens: N, ...limits }, repeats);
const peakGib = memoryStats().peak / 2 ** 30;
const gap = logprobGap(model, main.groups);
const full = limits.limitOf
  ? runRollouts(sampler, seedPrompts(Math.max(1, Math.floor(slots / G)), P), { groupSize: G, maxNewTokens: N }, repeats)
  : null;

const perPrompt = attention === "per-sequence" ? G : 1;
const bytes = stepBytes(model, { prompts: Math.min(Q, slots / G) * perPrompt, promptTokens: P, slots, newTokens: N });
const ms = spread(main.runs.map((run) => run.msPerStep));
const drawing = drawMs(Math.ceil(slots / 8) * 8, config.text.vocabSize);
const tokensPerS = spread(main.runs.map((run) => run.tokensPerS));
const fullTokensPerS = full && spread(full.runs.map((run) => run.tokensPerS));
const of = (pick: (run: (typeof main.runs)[0]) => number) => spread(main.runs.map(pick));
const result = {
  benchmark: "rollout",
  ...environment("cuda"),
  ...{ shape, dtype: "bfloat16", attention, deterministic, questions: Q, group: G, slots },
  ...{ promptTokens: P, newTokens: N, repeats: main.runs.length },
  lengths: limits.limitOf ? { lognormal: { mean: 128, sigma, most: N } } : "full",
  copyTbPerS,
  matmulTflops,
  msPerStep: ms,
  // of full slots; with other lengths it is not known which bytes a step had to read
  ...(limits.limitOf
    ? {}
    : {
        stepBytes: bytes,
        boundMsPerStep: bytes / copyTbPerS / 1e9,
        tbPerS: bytes / ms.median / 1e9,
        shareOfCopy: bytes / ms.median / 1e9 / copyTbPerS,
      }),
  tokensPerS,
  ...(fullTokensPerS && { fullTokensPerS, shareOfFullBatch: tokensPerS.median / fullTokensPerS.median }),
  occupancy: of((run) => run.occupancy),
  steps: main.runs[0]?.steps,
  tokens: main.runs[0]?.tokens,
  prefillS: of((run) => run.prefillS),
  visionS: of((run) => run.visionS),
  decodeS: of((run) => run.decodeS),
  wholeS: of((run) => run.wholeS),
  captureS: main.captureS,
  drawMs: drawing,
  drawShareOfStep: drawing / ms.median,
  kvGib: (main.runs[0]?.kvBytes ?? 0) / 2 ** 30,
  peakGib,
  logprobGapMean: gap.mean,
  logprobGapMax: gap.max,
};
say(
  `${shape}, ${Q} x ${G} completions in ${slots} slots, prompts of ${P} tokens, ${N} new tokens, ${attention} attention`,
);
say(
  `  decode   ${ms.median.toFixed(3)} ms a step (${ms.min.toFixed(3)} to ${ms.max.toFixed(3)}), ${tokensPerS.median.toFixed(0)} tokens/s, occupancy ${result.occupancy.median.toFixed(3)}`,
);
if (result.tbPerS !== undefined)
  say(
    `           bound ${result.boundMsPerStep?.toFixed(3)} ms; ${result.tbPerS.toFixed(2)} TB/s = ${(100 * (result.shareOfCopy ?? 0)).toFixed(1)} % of copying`,
  );
if (fullTokensPerS)
  say(
    `           full slots ${fullTokensPerS.median.toFixed(0)} tokens/s: ${(100 * (result.shareOfFullBatch as number)).toFixed(1)} %`,
  );
say(`  drawing  ${(1000 * drawing).toFixed(1)} us = ${(100 * result.drawShareOfStep).toFixed(1)} % of a step`);
say(
  `  prefill  ${result.prefillS.median.toFixed(3)} s (vision ${result.visionS.median.toFixed(3)}), capture ${main.captureS.toFixed(2)} s once, the whole ${result.wholeS.median.toFixed(3)} s, peak ${peakGib.toFixed(1)} GiB`,
);
say(
  `  log-probabilities, sampler against trainer: |difference| ${gap.mean.toExponential(2)} mean, ${gap.max.toExponential(2)} at most`,
);
if (values.trace !== undefined) {
  const { summary } = await recordTrace(values.trace, () => {
    runRollouts(sampler, prompts, { groupSize: G, maxNewTokens: N, ...limits }, 0);
  });
  for (const line of traceTable(summary)) say(line);
}
if (values.out !== undefined) writeResult(values.out, result);
