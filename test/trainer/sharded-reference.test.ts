/** A model whose weights arrive while a pass is under way says what the resident one says; at one of two ranks, the other's shares being made up. */

import { expect, test } from "vitest";
import { Ranks } from "../../src/distributed/ranks.ts";
import { mediaOf, type PackedGroup, packGroups } from "../../src/model/packed.ts";
import type { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { parameterSpecs } from "../../src/model/qwen2vl/parameters.ts";
import { copy_, fill_, reshape, slice, zeros } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import type { Tensor } from "../../src/torch/tensor.ts";
import { arenaElements } from "../../src/trainer/bucket-arena.ts";
import { type BucketLayout, bucketLayout } from "../../src/trainer/flat-layout.ts";
import { ShardedReference } from "../../src/trainer/sharded-reference.ts";
import { ShardedWeights } from "../../src/trainer/sharded-weights.ts";
import { VisionFeatures } from "../../src/trainer/vision-features.ts";
import { randomGroup, shakenModel, tinyConfig } from "../model/support.ts";

const TEXT = ["model.layers.0", "model.layers.1", "head"];
const VISION = ["visual.patch_embed", "visual.blocks.0", "visual.blocks.1", "visual.merger"];

/** All weights in the flat layout. */
function flatOf(model: Qwen2VL, { size, starts }: BucketLayout): Tensor {
  const flat = zeros([size], { dtype: "float64" });
  for (const [i, { tensor }] of model.parameters.entries()) {
    const start = starts[i] as number;
    scope(() => void copy_(slice(flat, 0, start, start + tensor.numel), reshape(tensor, [-1])));
  }
  return flat;
}

/** What a rank gathers, in order, and what the other rank's passes come to. Foreign parts arrive when they are waited for, and are NaN before. */
function oneOfTwo(rank: number, flat: Tensor, { buckets }: BucketLayout, others: boolean[][]) {
  const gathered: string[] = [];
  const expected: string[] = []; // what has to be gathered, set by the test
  const allGather = (all: Tensor) => {
    const part = expected[gathered.length] as string;
    gathered.push(part);
    const bucket = buckets.find((one) => one.part === part);
    if (bucket === undefined || bucket.size !== all.numel) throw new Error(`gathers ${all.numel} elements for ${part}`);
    const half = bucket.size / 2;
    const [own, other] = [rank * half, (1 - rank) * half];
    scope(() => {
      const wanted = slice(flat, 0, bucket.begin + own, bucket.begin + own + half);
      expect(slice(all, 0, own, own + half).toNumbers()).toEqual(wanted.toNumbers());
      fill_(slice(all, 0, other, other + half), Number.NaN);
    });
    const wait = () =>
      scope(() => {
        const arrived = slice(flat, 0, bucket.begin + other, bucket.begin + other + half);
        copy_(slice(all, 0, other, other + half), arrived);
      });
    return { wait };
  };
  const gather = (own: boolean[]) => (rank === 0 ? [own, others[0]] : [others[0], own]);
  const ranks = Object.assign(Object.create(Ranks.prototype), {
    rank,
    world: 2,
    group: { allGather },
    gather,
  }) as Ranks;
  return { gathered, expected, ranks };
}

test.each([
  [0, false],
  [1, false],
  [0, true],
  [1, true],
] as const)("rank %i of 2, tied head %s", async (rank, tied) => {
  const config = tinyConfig(tied);
  using model = shakenModel(config, 5);
  const layout = bucketLayout(
    model.parameters.map(({ name, tensor: { numel } }) => ({ name, numel })),
    2,
  );
  using flat = flatOf(model, layout);
  const before = liveTensors();
  {
    const withMedia = randomGroup(config, 1, { images: [[1, 4, 4]], videos: [[2, 2, 4]], completions: [3, 5] });
    const textOnly = randomGroup(config, 2, { completions: [4, 1] });
    const { gathered, expected, ranks } = oneOfTwo(rank, flat, layout, [[false, true, false, false]]);
    {
      using _weights = new ShardedWeights(parameterSpecs(config), ranks, model);
      expect(liveTensors().bytes - before.bytes).toBe(8 * (layout.size / 2 + arenaElements(layout)));
    }
    using reference = new ShardedReference(config, ranks, model);
    reference.fill(model.parameters);
    const resident = (groups: PackedGroup[], features?: (Tensor | null)[]) =>
      scope(() => {
        using pass = model.pass(packGroups(groups), { grad: false, visionCache: features });
        return pass.logprobs.toNumbers();
      });
    const embedding = "model.embed_tokens";
    const again = tied ? TEXT : [embedding, ...TEXT]; // a tied one has stayed
    // The other rank has four packs, and a picture in the second one; this rank a picture in the first one.
    expected.push(...VISION, embedding, ...TEXT, ...VISION, ...again, ...again, ...again);
    const packs = [[withMedia], [textOnly], [textOnly, textOnly]];
    const logprobs = await reference.logprobs(packs.map(packGroups));
    expect(logprobs.map((one) => one.toNumbers())).toEqual(packs.map((groups) => resident(groups)));
    expect(gathered).toEqual(expected);

    // With features that somebody else has made no tower is asked; the other rank's second pack wants it all the same.
    expected.push(...again, ...VISION, ...again, ...again, ...again);
    const cached = await scope(() => model.visionFeatures(mediaOf([withMedia.prompt])));
    reference.shareFeatures({ features: new VisionFeatures(model), model });
    const [only] = await reference.logprobs([packGroups([withMedia])]);
    expect(only?.toNumbers()).toEqual(resident([withMedia], [cached]));
    expect(gathered).toEqual(expected);

    // A rank without questions.
    expected.push(...again, ...VISION, ...again, ...again, ...again);
    expect(await reference.logprobs([])).toEqual([]);
    expect(gathered).toEqual(expected);
    for (const tensor of [...logprobs, only, cached]) tensor?.free();
  }
  expect(liveTensors()).toEqual(before);
});
