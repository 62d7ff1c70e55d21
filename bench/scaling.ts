/**
 * Steps of the real trainer (`grpo --nproc n`) on 1, 2, .. n GPUs with the same questions per GPU: questions a second, efficiency against the fewest GPUs,
 * and the share of a step in which the device does nothing but communicate, from a trace of the last step. Random weights, pictures of noise: no
 * model, no data set, no internet. Then what 8 x A100-40GB and 8 nodes of them would do, modelled from the measured parts (lib/scaling-model.ts).
 *
 *   npm run bench -- scaling --shape qwen2-vl-7b [--gpus 1,2,4] [--questions 8] [--group 8] [--new-tokens 256] [--words 111] [--pictures 9] [--steps 6]
 *                            [--set knob=value ...] [--device cuda] [--folder dir] [--out file.json]
 *
 * --gpus: default powers of two up to all. --questions: of each GPU. The first two steps warm up, the last one is traced (on CUDA), the others are timed.
 * Whatever the knobs of the run are to be else, --set hands them to `grpo`, e.g. --set distributed.shardGradients=true.
 * On the CPU (`--device cpu --shape tiny --gpus 1,2`) ranks share the machine and nothing is modelled: that is for trying it out.
 */

import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { deviceCount, emptyCache } from "../src/torch/cuda.ts";
import { readMetrics } from "../src/trainer/run-folder.ts";
import { type Communication, communicationOfFile } from "./lib/exposed.ts";
import { measureCopy, measureMatmul } from "./lib/hardware.ts";
import { environment, spread, writeResult } from "./lib/report.ts";
import { ASSUMED, type Measured, model } from "./lib/scaling-model.ts";
import { workOf } from "./lib/scaling-work.ts";
import { writeConfig, writeWorld } from "./lib/scaling-world.ts";
import { shapeConfig } from "./lib/shapes.ts";

const { values } = parseArgs({
  options: {
    shape: { type: "string", default: "qwen2-vl-7b" },
    gpus: { type: "string" },
    questions: { type: "string", default: "8" },
    group: { type: "string", default: "8" },
    "new-tokens": { type: "string", default: "256" },
    words: { type: "string", default: "111" },
    pictures: { type: "string", default: "9" },
    steps: { type: "string", default: "6" },
    set: { type: "string", multiple: true, default: [] },
    device: { type: "string", default: "cuda" },
    folder: { type: "string" },
    out: { type: "string" },
  },
});
const WARM_UP = 2;
const [Q, G, N, steps] = [values.questions, values.group, values["new-tokens"], values.steps].map(Number) as [
  number,
  number,
  number,
  number,
];
const device = values.device === "cpu" ? "cpu" : "cuda";
const traces = device === "cuda";
if (steps < WARM_UP + (traces ? 2 : 1))
  throw new Error(`--steps ${steps}: expected ${WARM_UP + (traces ? 2 : 1)} at least`);
const say = (line: string) => process.stdout.write(`${line}\n`);

const counts = values.gpus?.split(",").map(Number) ?? powersOfTwo(device === "cpu" ? 2 : deviceCount());
const shape = shapeConfig(values.shape);
const folder = values.folder ?? mkdtempSync(path.join(tmpdir(), "grove-scaling-"));
const rates = traces ? { flops: measureMatmul() * 1e12, bytesPerS: measureCopy() * 1e12 } : null;
emptyCache(); // the runs have the device

/** One run, as its metrics tell it. */
interface Run {
  gpus: number;
  questionsPerS: ReturnType<typeof spread>;
  stepS: ReturnType<typeof spread>;
  /** Medians of the phases, of rank 0. */
  phases: { rollout: number; prefill: number; decode: number; reference: number; update: number };
  promptTokens: number;
  peakGib: number;
  /** By rank. */
  communication: Communication[];
}

function run(gpus: number): Run {
  const size = { gpus, questions: Q, group: G, newTokens: N, steps, traced: traces ? [steps] : [], device } as const;
  const { file, runDir } = writeConfig(folder, size);
  const program = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));
  const knobs = values.set.flatMap((knob) => ["--set", knob]);
  const args = [
    ...process.execArgv,
    program,
    "grpo",
    "--config",
    file,
    "--nproc",
    String(gpus),
    "--overwrite",
    ...knobs,
  ];
  const { status, stderr } = spawnSync(process.execPath, args, {
    encoding: "utf8",
    stdio: ["ignore", "ignore", "pipe"],
    maxBuffer: 2 ** 28,
    env: { ...process.env, GROVE_LOG_LEVEL: "warn" },
  });
  if (status !== 0) throw new Error(`${gpus} GPUs: the run ended with status ${status}\n${stderr.slice(-4000)}`);
  const timed = readMetrics(path.join(runDir, "metrics.jsonl")).filter(
    ({ step }) => step > WARM_UP && (!traces || step < steps),
  );
  const of = (name: string) => spread(timed.map((line) => line[name] as number));
  const median = (name: string) => of(name).median;
  return {
    gpus,
    questionsPerS: spread(timed.map((line) => (line["data/questions"] as number) / (line["time/step_s"] as number))),
    stepS: of("time/step_s"),
    phases: {
      ...{ rollout: median("time/rollout_s"), prefill: median("time/prefill_s"), decode: median("time/decode_s") },
      ...{ reference: median("time/reference_s"), update: median("time/update_s") },
    },
    promptTokens: median("data/prompt_tokens_mean"),
    peakGib: of("memory/peak_gib").max,
    communication: Array.from({ length: gpus }, (_, rank) => traceOf(runDir, rank)).filter((one) => one !== null),
  };
}

function traceOf(runDir: string, rank: number): Communication | null {
  const share = rank === 0 ? "" : `-rank-${rank}`;
  const file = path.join(runDir, `trace-${String(steps).padStart(6, "0")}${share}.json`);
  return existsSync(file) ? communicationOfFile(file) : null;
}

function powersOfTwo(most: number): number[] {
  const all = [1, 2, 4, 8, 16, 32, 64].filter((count) => count <= most);
  return most > 0 && !all.includes(most) ? [...all, most] : all;
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

try {
  const most = Math.max(...counts);
  const words = { questions: steps * most * Q, pictures: Number(values.pictures), words: Number(values.words) };
  await writeWorld(folder, shape, words);
  const runs: Run[] = [];
  for (const count of counts) runs.push(run(count));
  const first = runs[0] as Run;
  const perGpu = ({ questionsPerS, gpus }: Run) => questionsPerS.median / gpus;
  const table = runs.map((one) => ({ ...one, efficiency: perGpu(one) / perGpu(first) }));
  const what = device === "cpu" ? "ranks" : "GPUs";
  const { device: name, ...rest } = environment(device);
  say(
    `${values.shape}, ${Q} questions a GPU, prompts of ${first.promptTokens.toFixed(0)}, ${G} x ${N} tokens; ${name}; ${steps - WARM_UP - (traces ? 1 : 0)} timed steps each; measured:`,
  );
  say(
    `  ${what}  questions/s  efficiency   step s  rollout  reference  update  peak GiB  communication alone, share of a step`,
  );
  for (const { gpus, questionsPerS, efficiency, stepS, phases, peakGib, communication } of table) {
    const shares = communication.map(({ exposedShare }) => exposedShare);
    const busy = communication.map(({ communicationS, seconds }) => communicationS / seconds);
    const exposed =
      shares.length === 0
        ? device === "cpu"
          ? "not traced: no GPU"
          : "no trace"
        : `${percent(spread(shares).median)} (${shares.map(percent).join(", ")} by rank); NCCL at work ${percent(spread(busy).median)}`;
    const cells = [
      String(gpus).padStart(4),
      questionsPerS.median.toFixed(3).padStart(13),
      percent(efficiency).padStart(12),
      stepS.median.toFixed(3).padStart(9),
      phases.rollout.toFixed(3).padStart(9),
      phases.reference.toFixed(3).padStart(11),
      phases.update.toFixed(3).padStart(8),
      peakGib.toFixed(2).padStart(10),
    ];
    say(`  ${cells.join("")}  ${exposed}`);
  }
  const modelled = rates === null || first.gpus !== 1 ? null : clusters(first, rates);
  if (modelled !== null) {
    say("");
    say("modelled, not measured: parts of the run on one GPU, at the rates of other cards; assumed are");
    say(
      `  ${(ASSUMED.a100Flops / 1e12).toFixed(0)} TFLOP/s and ${(ASSUMED.a100BytesPerS / 1e12).toFixed(2)} TB/s of an A100-40GB (here measured: ${((rates?.flops ?? 0) / 1e12).toFixed(0)} and ${((rates?.bytesPerS ?? 0) / 1e12).toFixed(2)}), ${ASSUMED.nvlinkBytesPerS / 1e9} GB/s between a node's GPUs, ${ASSUMED.nodeBytesPerS / 1e9} between nodes;`,
    );
    say("  one question a GPU, whole layers computed again, gradients and reference sharded");
    say("                    questions/s       step s, communication hidden as far as it can be / not at all");
    for (const { label, result } of modelled) {
      const { hidden, exposed } = result.stepS;
      say(
        `  ${label.padEnd(16)} ${result.questionsPerS.hidden.toFixed(2).padStart(6)} to ${result.questionsPerS.exposed.toFixed(2).padStart(6)}   ${hidden.toFixed(2)} / ${exposed.toFixed(2)} (computation ${result.computeS.toFixed(2)}, communication ${result.communicationS.toFixed(2)})`,
      );
    }
  }
  if (values.out !== undefined)
    writeResult(values.out, {
      benchmark: "scaling",
      ...{ device: name, ...rest, shape: values.shape, questions: Q, group: G, newTokens: N, steps, set: values.set },
      measured: table,
      ...(rates && { rates }),
      ...(modelled && { modelled: { assumed: ASSUMED, clusters: modelled } }),
    });
} finally {
  if (values.folder === undefined) rmSync(folder, { recursive: true, force: true });
}

/** Of the seed's step, a question a GPU. */
function clusters({ phases, stepS, promptTokens }: Run, own: { flops: number; bytesPerS: number }) {
  const work = workOf(shape, { promptTokens, group: G, newTokens: N });
  const optimizerS = work.optimizerBytes / own.bytesPerS;
  const measured: Measured = {
    questions: Q,
    ...{ prefillS: phases.prefill, decodeS: phases.decode, referenceS: phases.reference },
    updateS: phases.update - optimizerS,
    otherS: stepS.median - phases.prefill - phases.decode - phases.reference - phases.update,
    ...own,
  };
  return [1, 8].map((nodes) => ({
    label: nodes === 1 ? "8 x A100-40GB" : `${nodes} nodes of 8`,
    result: model(work, measured, {
      ...{ nodes, gpusPerNode: 8, questions: 1, flops: ASSUMED.a100Flops, bytesPerS: ASSUMED.a100BytesPerS },
      ...{ nvlinkBytesPerS: ASSUMED.nvlinkBytesPerS, nodeBytesPerS: ASSUMED.nodeBytesPerS },
      ...{ recompute: true, shardReference: true },
    }),
  }));
}
