/**
 * How fast the weights of a model folder get to their device, against how fast its files can be read: a sharded checkpoint of Qwen2-VL-7B's
 * shape (fewer layers where --bytes says so) with random weights is written to a temporary folder, then read with plain reads of 16 MiB
 * into one buffer, loaded with loadParameters, read into parameters that exist already (on the host this leaves out what fresh memory
 * costs), and copied tensor by tensor from a memory map, in turns. Warm: the files are in the page cache. --cold adds turns before which
 * the kernel was told to drop them.
 *
 *   node --import tsx bench/load.ts [--device cuda] [--bytes 4e9] [--dtype bfloat16] [--repeats 3] [--cold] [--folder /tmp] [--out file.json]
 *
 * The bar: loading at no less than half the speed of reading.
 */
import { execFileSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { Parameter, ParameterSpec } from "../src/model/parameter.ts";
import { configJson, parseConfig, type Qwen2VLConfig } from "../src/model/qwen2vl/config.ts";
import { parameterSpecs } from "../src/model/qwen2vl/parameters.ts";
import { byteLength, openShards, type SafetensorsFile, writeSafetensors } from "../src/model/safetensors.ts";
import { readWeights, type WeightRead } from "../src/model/weight-reader.ts";
import { loadParameters } from "../src/model/weights.ts";
import { cudaAvailable, synchronize } from "../src/torch/cuda.ts";
import { copy_, empty, randn, repeat, reshape, slice } from "../src/torch/ops.ts";
import { scope } from "../src/torch/scope.ts";
import type { Device, DType } from "../src/torch/tensor.ts";
import { environment, spread, writeResult } from "./lib/report.ts";

const SHARD_BYTES = 4e9; // as the released checkpoints are cut

/** GB/s (1e9 bytes), one number a repeat. */
interface Speeds {
  read: number[];
  load: number[];
  refill: number[];
  mapped: number[];
}

const { values } = parseArgs({
  options: {
    device: { type: "string", default: cudaAvailable() ? "cuda" : "cpu" },
    bytes: { type: "string", default: "4e9" },
    dtype: { type: "string", default: "bfloat16" },
    repeats: { type: "string", default: "3" },
    cold: { type: "boolean", default: false },
    folder: { type: "string", default: tmpdir() },
    out: { type: "string" },
  },
});
const device = values.device as Device;
const dtype = values.dtype as DType;
const say = (line: string) => process.stdout.write(`${line}\n`);

const folder = mkdtempSync(join(values.folder, "grove-load-"));
try {
  const config = shapeOf(Number(values.bytes));
  const specs = parameterSpecs(config);
  say(`writing ${config.text.numLayers} language layers of the 7B shape, bfloat16, to ${folder}`);
  const files = writeCheckpoint(folder, specs);
  const bytes = files.reduce((sum, file) => sum + statSync(file).size, 0);
  const placement = { device, dtype };
  const sides: [keyof Speeds, () => void][] = [
    ["read", () => readFiles(files)],
    ["load", () => load(specs, placement)],
    ["refill", () => refill(specs, existing)],
    ["mapped", () => copyFromMap(specs, placement)],
  ];
  const states = values.cold ? (["warm", "cold"] as const) : (["warm"] as const);
  const speeds = Object.fromEntries(
    states.map((state) => [state, { read: [], load: [], refill: [], mapped: [] }]),
  ) as Partial<Record<"warm" | "cold", Speeds>>;
  readFiles(files); // into the page cache
  const existing = loadParameters(folder, specs, placement);
  load(specs, placement); // the device's start-up is not measured
  const rss = peakRss(() => load(specs, placement));
  for (let i = 0; i < Number(values.repeats); i++) {
    for (const state of states) {
      for (const [name, run] of sides) {
        if (state === "cold") files.forEach(dropFromCache);
        const started = performance.now();
        run();
        speeds[state]?.[name].push(bytes / (performance.now() - started) / 1e6);
      }
    }
  }
  for (const { tensor } of existing) tensor.free();
  const result = {
    benchmark: "load",
    ...environment(device),
    dtype,
    bytes,
    shards: files.length,
    peakRssOverBytes: rss / bytes,
    gbPerSecond: speeds,
    loadOverRead: Object.fromEntries(
      states.map((state) => [state, median(speeds[state]?.load) / median(speeds[state]?.read)]),
    ),
  };
  say(`${(bytes / 1e9).toFixed(2)} GB in ${files.length} shards to ${device} as ${dtype}; GB/s, median (all)`);
  for (const state of states) {
    for (const [name] of sides) {
      const all = speeds[state]?.[name] ?? [];
      say(`  ${state} ${name.padEnd(7)} ${median(all).toFixed(2)}  (${all.map((x) => x.toFixed(2)).join(", ")})`);
    }
    say(`  ${state} load / read ${result.loadOverRead[state]?.toFixed(2)}`);
  }
  say(`  most host memory while loading, beyond before: ${(rss / 1e9).toFixed(2)} GB`);
  if (values.out !== undefined) writeResult(values.out, result);
} finally {
  rmSync(folder, { recursive: true, force: true });
}

/** The 7B shape with as many language layers as fit into `limit` bytes of bfloat16, at least one and at most its 28. */
function shapeOf(limit: number): Qwen2VLConfig {
  const released = JSON.parse(
    readFileSync(new URL("../test/fixtures/qwen2vl-shapes/7b.json", import.meta.url), "utf8"),
  );
  const withLayers = (layers: number) => parseConfig({ ...released, num_hidden_layers: layers });
  const size = (layers: number) =>
    parameterSpecs(withLayers(layers)).reduce((sum, { shape }) => sum + byteLength("bfloat16", shape), 0);
  let layers = 28;
  while (layers > 1 && size(layers) > limit) layers--;
  return withLayers(layers);
}

function writeCheckpoint(target: string, specs: readonly ParameterSpec[]): string[] {
  writeFileSync(join(target, "config.json"), JSON.stringify(configJson(shapeOf(Number(values.bytes)), "bfloat16")));
  const shards: ParameterSpec["parts"][] = [[]];
  let room = SHARD_BYTES;
  for (const part of specs.flatMap(({ parts }) => parts)) {
    room -= byteLength("bfloat16", part.shape);
    if (room < 0) {
      shards.push([]);
      room = SHARD_BYTES - byteLength("bfloat16", part.shape);
    }
    shards.at(-1)?.push(part);
  }
  const weightMap: Record<string, string> = {};
  using pool = randn([2 ** 24], { dtype: "bfloat16" });
  const files = shards.map((parts, i) => {
    const name = `model-${i + 1}-of-${shards.length}.safetensors`;
    for (const part of parts) weightMap[part.name] = name;
    writeSafetensors(
      join(target, name),
      parts.map(({ name: tensor, shape }) => ({
        name: tensor,
        dtype: "bfloat16" as const,
        shape,
        read: () => {
          const count = shape.reduce((a, b) => a * b, 1);
          return reshape(slice(repeat(pool, [Math.ceil(count / pool.numel)]), 0, 0, count), shape);
        },
      })),
    );
    return join(target, name);
  });
  writeFileSync(join(target, "model.safetensors.index.json"), JSON.stringify({ weight_map: weightMap }));
  return files;
}

function readFiles(files: readonly string[]): void {
  const buffer = Buffer.allocUnsafe(2 ** 24);
  for (const file of files) {
    const fd = openSync(file, "r");
    while (readSync(fd, buffer, 0, buffer.length, null) > 0);
    closeSync(fd);
  }
}

function load(specs: readonly ParameterSpec[], placement: { device: Device; dtype: DType }): void {
  const parameters = loadParameters(folder, specs, placement);
  synchronize();
  for (const { tensor } of parameters) tensor.free();
}

function refill(specs: readonly ParameterSpec[], parameters: readonly Parameter[]): void {
  const { files, fileOf } = openShards(folder);
  scope(() => {
    const reads = specs.flatMap(({ parts }, i) =>
      parts.map(({ name, rows }): WeightRead => {
        const into = slice((parameters[i] as Parameter).tensor, 0, ...rows);
        return { file: fileOf.get(name) as SafetensorsFile, name, into };
      }),
    );
    readWeights(reads);
    synchronize();
  });
  for (const file of files) file[Symbol.dispose]();
}

/** What loading would be without src/model/weight-reader.ts. */
function copyFromMap(specs: readonly ParameterSpec[], placement: { device: Device; dtype: DType }): void {
  const { files, fileOf } = openShards(folder);
  scope(() => {
    for (const { shape, parts } of specs) {
      const tensor = empty(shape, placement);
      for (const { name, rows } of parts) {
        const target = slice(tensor, 0, ...rows);
        copy_(target, reshape(fileOf.get(name)?.tensor(name) ?? tensor, target.shape));
      }
    }
    synchronize();
  });
  for (const file of files) file[Symbol.dispose]();
}

/** `dd` with nothing to copy tells the kernel that the file's pages are not needed. */
function dropFromCache(file: string): void {
  execFileSync("dd", [`if=${file}`, "iflag=nocache", "count=0"], { stdio: "ignore" });
}

/** How far the process's memory rises above what it is before, bytes. */
function peakRss(run: () => void): number {
  const field = (name: string) =>
    Number(new RegExp(`${name}:\\s+(\\d+)`).exec(readFileSync("/proc/self/status", "utf8"))?.[1]) * 1024;
  const before = field("VmRSS");
  writeFileSync("/proc/self/clear_refs", "5"); // the peak starts anew
  run();
  return field("VmHWM") - before;
}

function median(numbers: readonly number[] = []): number {
  return spread(numbers).median;
}
