/**
 * One rank of sharded.test.ts and sharded.gpu.test.ts: a sharded reference against the resident one, and gradients that travel against those of all
 * packs on one rank. The first argument is cpu or cuda; the outcome is JSON on standard output.
 */

import { readPlace } from "../../src/distributed/environment.ts";
import { joinRanks } from "../../src/distributed/ranks.ts";
import { type PackedGroup, packGroups } from "../../src/model/packed.ts";
import { parseConfig } from "../../src/model/qwen2vl/config.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { setDevice } from "../../src/torch/cuda.ts";
import { fill_, full, zerosLike } from "../../src/torch/ops.ts";
import { keep, scope } from "../../src/torch/scope.ts";
import type { Device } from "../../src/torch/tensor.ts";
import { bucketLayout } from "../../src/trainer/flat-layout.ts";
import { type Backward, WholeGradients } from "../../src/trainer/gradients.ts";
import { ShardedGradients } from "../../src/trainer/sharded-gradients.ts";
import { ShardedReference } from "../../src/trainer/sharded-reference.ts";
import { randomGroup } from "../model/support.ts";
import { gpuOfRank } from "../torch/gpus.ts";

const onGpu = process.argv[2] === "cuda";
const place = readPlace(process.env);
if (place === null) throw new Error("no ranks around");
const { rank, world } = place;
if (onGpu) setDevice(gpuOfRank(rank));
const device: Device = onGpu ? `cuda:${gpuOfRank(rank)}` : "cpu";
const dtype = onGpu ? "bfloat16" : "float32";
const ranks = joinRanks(place, { nccl: onGpu, timeoutMs: 300_000 });

const width = onGpu ? 512 : 32; // on a GPU large enough for collectives to take as long as layers do
const config = parseConfig({
  model_type: "qwen2_vl",
  vocab_size: onGpu ? 8000 : 60,
  hidden_size: width,
  intermediate_size: 4 * width,
  num_hidden_layers: onGpu ? 9 : 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  rope_scaling: { type: "mrope", mrope_section: onGpu ? [16, 24, 24] : [1, 1, 2] },
  tie_word_embeddings: process.argv[3] === "tied",
  image_token_id: 56,
  video_token_id: 57,
  vision_start_token_id: 58,
  vision_end_token_id: 59,
  eos_token_id: 55,
  vision_config: {
    depth: 3,
    embed_dim: onGpu ? 256 : 16,
    hidden_size: width,
    mlp_ratio: 4,
    num_heads: onGpu ? 4 : 2,
    patch_size: onGpu ? 14 : 2,
  },
});

/** Of each rank: rank 0 has pictures and three packs, rank 1 text and two, the others none. */
const packs: PackedGroup[][][] = [
  [
    [randomGroup(config, 1, { images: [[1, 4, 4]], videos: [[2, 4, 4]], completions: [30, 50] })],
    [randomGroup(config, 2, { completions: [40, 1] }), randomGroup(config, 3, { completions: [9] })],
    [randomGroup(config, 4, { images: [[1, 8, 4]], completions: [70] })],
  ],
  [[randomGroup(config, 5, { completions: [60, 60] })], [randomGroup(config, 6, { completions: [80, 7, 11] })]],
];
const mine = (packs[rank] ?? []).map(packGroups);

using model = Qwen2VL.random(config, { device, dtype, seed: 3 });

/** Whether both ways say the same, bit for bit, twice. */
async function compareReferences(): Promise<boolean[]> {
  const resident = mine.map((pack) =>
    scope(() => {
      using pass = model.pass(pack, { grad: false });
      return pass.logprobs.toNumbers();
    }),
  );
  using reference = new ShardedReference(config, ranks, model);
  reference.fill(model.parameters);
  const same: boolean[] = [];
  for (let turn = 0; turn < 2; turn++) {
    const logprobs = await reference.logprobs(mine);
    same.push(JSON.stringify(logprobs.map((one) => one.toNumbers())) === JSON.stringify(resident));
    for (const tensor of logprobs) tensor.free();
  }
  return same;
}

function backwardOf(pack: (typeof mine)[number], through: (run: Backward) => void): void {
  scope(() => {
    using pass = model.pass(pack, { grad: true });
    through((watch) => pass.backward(full(pass.logprobs.shape, 0.01, { device }), null, watch));
  });
}

/** Gradients of all packs of all ranks, by parameter. */
function expectedGradients(): Map<string, number[]> {
  for (const { tensor } of model.parameters) tensor.setGrad(scope(() => keep(zerosLike(tensor))));
  for (const pack of packs.flat().map(packGroups)) backwardOf(pack, (run) => run(undefined));
  const gradients = new Map(
    model.parameters.map(({ name, tensor }) => [name, scope(() => tensor.grad?.toNumbers() ?? [])]),
  );
  for (const { tensor } of model.parameters) tensor.setGrad(null);
  return gradients;
}

/** The largest relative error of a bucket's part at this rank, after the second of two updates. */
function compareGradients(Kind: typeof WholeGradients | typeof ShardedGradients, expected: Map<string, number[]>) {
  const layout = bucketLayout(
    model.parameters.map(({ name, tensor: { numel } }) => ({ name, numel })),
    world,
  );
  const flat = new Float64Array(layout.size);
  for (const [i, { name }] of model.parameters.entries()) flat.set(expected.get(name) ?? [], layout.starts[i]);
  using gradients = new Kind(model.parameters, layout, ranks);
  for (let update = 0; update < 2; update++) {
    for (const own of gradients.own) fill_(own, update); // what begin() has to clear
    gradients.begin(mine.length);
    for (const pack of mine) backwardOf(pack, (run) => gradients.backward(run));
    gradients.reduce();
  }
  const errors = layout.buckets.map(({ begin, size }, i) => {
    const from = begin + (rank * size) / world;
    const got = gradients.own[i]?.toNumbers() ?? [];
    let [difference, whole] = [0, 0];
    for (const [k, value] of got.entries()) {
      const wanted = flat[from + k] as number;
      difference += (value - wanted) ** 2;
      whole += wanted ** 2;
    }
    return whole === 0 ? difference : Math.sqrt(difference / whole);
  });
  return Math.max(...errors);
}

const references = await compareReferences();
const expected = expectedGradients();
const whole = compareGradients(WholeGradients, expected);
const sharded = compareGradients(ShardedGradients, expected);
process.stdout.write(JSON.stringify({ references, whole, sharded }));
await ranks.leave();
