/**
 * `npm run parity -- --seed 1`: Grove beside Hugging Face transformers, stage by stage, on random models and media made from the seed.
 * docs/parity.md says what is compared, by which norm, and within which bounds.
 */

import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { mediaOf, type Processor } from "../../src/data/processor.ts";
import { readConfig } from "../../src/model/qwen2vl/config.ts";
import { versions } from "../../src/torch/cuda.ts";
import type { Device, DType } from "../../src/torch/tensor.ts";
import { type Input, makeInputs, makeModelFolder, SHAPES, type Shape } from "./cases.ts";
import { forbiddenOf, runShape } from "./ours.ts";
import { openProcessor, type Prepared, prepare } from "./prepare.ts";
import { COLUMNS, type PythonCheck, type PythonReport, reportRows } from "./report.ts";
import { failures, formatTable, type Row } from "./table.ts";

const USAGE = `usage: npm run parity -- [--seed 1] [--size tiny|medium] [--cases part,of,a,name] [--device cpu|cuda] [--dtype float32|bfloat16]
                        [--threads n] [--out report.json] [--keep folder]`;
const REFERENCE = fileURLToPath(new URL("reference.py", import.meta.url));

const say = (line: string) => process.stdout.write(`${line}\n`);

function readOptions() {
  const { values } = parseArgs({
    options: {
      seed: { type: "string", default: "1" },
      size: { type: "string", default: "tiny" },
      cases: { type: "string" },
      device: { type: "string", default: "cpu" },
      dtype: { type: "string", default: "float32" },
      threads: { type: "string", default: `${availableParallelism()}` },
      out: { type: "string" },
      keep: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  const seed = Number(values.seed);
  if (values.help || !Number.isSafeInteger(seed) || SHAPES[values.size] === undefined) throw new Error(USAGE);
  if (values.dtype !== "float32" && values.dtype !== "bfloat16") throw new Error(USAGE);
  return {
    ...values,
    seed,
    threads: Number(values.threads),
    device: values.device as Device,
    dtype: values.dtype as DType,
  };
}

interface PythonVersions {
  python: string;
  torch: string;
  transformers: string;
  processors: boolean;
  cuda: string | null;
}

function python(args: readonly string[]): string {
  const { status, stdout, stderr, error } = spawnSync("python3", [REFERENCE, ...args], {
    encoding: "utf8",
    maxBuffer: 2 ** 28,
  });
  if (error !== undefined || status !== 0)
    throw new Error(`python3 ${args[0]} failed: ${error?.message ?? stderr.slice(-4000)}`);
  return stdout;
}

/** @throws Error that says what to install */
function findTransformers(device: Device): PythonVersions {
  const probe = spawnSync("python3", ["-c", "import torch, transformers, safetensors"], { encoding: "utf8" });
  if (probe.status !== 0) {
    const reason = probe.error?.message ?? probe.stderr.trim().split("\n").at(-1);
    throw new Error(
      `parity compares with Hugging Face transformers, which python3 here cannot load (${reason}); run \`pip install torch transformers\` (5.0 or later; torchvision and Pillow too for the comparison of pixels)`,
    );
  }
  const found = JSON.parse(python(["versions"]).trim().split("\n").at(-1) as string) as PythonVersions;
  if (Number(found.transformers.split(".")[0]) < 5)
    throw new Error(
      `parity needs transformers 5.0 or later, python3 has ${found.transformers}; run \`pip install -U transformers\``,
    );
  if (device !== "cpu" && found.cuda === null)
    throw new Error("python3's torch sees no CUDA device; leave --device away");
  return found;
}

interface ShapeWork {
  shape: Shape;
  folder: string; // name inside the work folder
  processor: Processor;
  prepared: Prepared[];
}

async function compare(work: string, options: ReturnType<typeof readOptions>): Promise<Row[]> {
  const { seed, size, device, dtype } = options;
  const half = dtype === "bfloat16";
  const inputs = pickCases(await makeInputs(work, seed, size === "medium" ? 3 : 1), options.cases);
  // bfloat16 errors are compared with each other: that takes many tokens
  const completionLengths = half ? [96, 64] : [9, 6];
  const works: ShapeWork[] = [];
  for (const [i, shape] of (SHAPES[size] ?? []).entries()) {
    const folder = `shape${i}`;
    const modelFolder = join(work, folder, "model");
    await makeModelFolder(modelFolder, shape, inputs);
    const processor = await openProcessor(modelFolder);
    const prepared = await prepare(processor, inputs, {
      file: join(work, folder, "ours.safetensors"),
      seed,
      completionLengths,
    });
    works.push({ shape, folder, processor, prepared });
  }
  const gradientsPerInput = size === "tiny";
  const shapes = works.map(({ shape, folder, processor, prepared }) => ({
    name: shape.name,
    folder,
    flatConfig: shape.flatConfig,
    sharded: shape.sharded,
    gradientsPerInput,
    forbidden: forbiddenOf(readConfig(join(work, folder, "model")), processor),
    inputs: prepared.map(({ input, prompt }) => ({ ...input, media: mediaOf(prompt.sample).map(({ kind }) => kind) })),
  }));
  const job = { seed, size, device, dtype, threads: options.threads, shapes };
  writeFileSync(join(work, "job.json"), JSON.stringify(job));
  python(["make", work]);
  const runs = works.map(({ folder, processor, prepared }) =>
    runShape(join(work, folder), processor, prepared, { device, dtype, gradientsPerInput }),
  );
  python(["check", work]);
  const read = (name: string) => JSON.parse(readFileSync(join(work, name), "utf8"));
  const made = read("theirs.json") as PythonReport;
  const checked = read("check.json") as PythonCheck;
  return works.flatMap(({ shape, prepared }, i) => {
    const [theirs, check, run] = [made[shape.name], checked[shape.name], runs[i]];
    if (theirs === undefined || check === undefined || run === undefined) throw new Error(`no report of ${shape.name}`);
    return reportRows({ shape: shape.name, tied: shape.spec.tieWordEmbeddings === true, prepared, theirs, check, run });
  });
}

function pickCases(inputs: Input[], wanted: string | undefined): Input[] {
  if (wanted === undefined) return inputs;
  const parts = wanted.split(",");
  const picked = inputs.filter(({ name }) => parts.some((part) => name.includes(part)));
  if (picked.length === 0)
    throw new Error(`no case is called ${wanted}; there are: ${inputs.map(({ name }) => name).join("; ")}`);
  return picked;
}

async function main(): Promise<number> {
  const options = readOptions();
  const found = findTransformers(options.device);
  const work = options.keep ?? mkdtempSync(join(tmpdir(), "grove-parity-"));
  mkdirSync(work, { recursive: true });
  say(
    `parity: seed ${options.seed}, ${options.size}, ${options.dtype} on ${options.device === "cpu" ? "the CPU" : found.cuda}; grove on libtorch ${versions().torch}, transformers ${found.transformers} on torch ${found.torch}`,
  );
  if (!found.processors)
    say(
      "pixels are not compared: transformers' Qwen2-VL processors want torchvision and Pillow (pip install torchvision pillow)",
    );
  try {
    const started = performance.now();
    const rows = await compare(work, options);
    const columns = COLUMNS[options.dtype === "bfloat16" ? "bfloat16" : "float32"];
    say(formatTable(rows, columns));
    const failed = failures(rows);
    for (const line of failed) say(`FAILED ${line}`);
    const seconds = (performance.now() - started) / 1000;
    say(`${failed.length === 0 ? "passed" : `${failed.length} FAILED`} (${seconds.toFixed(0)} s)`);
    if (options.out !== undefined) {
      mkdirSync(dirname(options.out), { recursive: true });
      const { seed, size, device, dtype } = options;
      const report = { seed, size, device, dtype, grove: versions(), reference: found, rows, failed };
      writeFileSync(options.out, `${JSON.stringify(report, null, 2)}\n`);
    }
    return failed.length === 0 ? 0 : 1;
  } finally {
    if (options.keep === undefined) rmSync(work, { recursive: true, force: true });
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
