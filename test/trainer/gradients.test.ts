/** When gradients travel, in which order, and what is kept of them; at one of two ranks, of which the other has nothing to add. */

import { expect, test } from "vitest";
import { Ranks } from "../../src/distributed/ranks.ts";
import { packGroups } from "../../src/model/packed.ts";
import { partOf } from "../../src/model/qwen2vl/parameters.ts";
import { full } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { arenaElements, BucketArena } from "../../src/trainer/bucket-arena.ts";
import { bucketLayout } from "../../src/trainer/flat-layout.ts";
import { WholeGradients } from "../../src/trainer/gradients.ts";
import { ShardedGradients } from "../../src/trainer/sharded-gradients.ts";
import { gradientsOf, randomGroup, shakenModel, tinyConfig } from "../model/support.ts";

test.each([
  false,
  true,
])("a backward pass tells when a part's gradients are final, from the head on (tied head: %s)", (tied) => {
  const config = tinyConfig(tied);
  using model = shakenModel(config, 3);
  const group = randomGroup(config, 1, { images: [[1, 4, 4]], completions: [3, 5] });
  const ones = Array<number>(8).fill(1);
  for (const freezeVision of [false, true]) {
    const { gradients } = gradientsOf(model, [group], ones, { freezeVision });
    const namesOf = (part: string) => [...gradients.keys()].filter((name) => partOf(name) === part);
    const told: string[] = [];
    const begun = new Set<string>();
    const now = (name: string) =>
      scope(() => model.parameters.find((one) => one.name === name)?.tensor.grad?.toNumbers());
    scope(() => {
      using pass = model.pass(packGroups([group]), { grad: true, freezeVision });
      pass.backward(full([8], 1), null, {
        before: (part) => {
          // Nothing of a part is there before it is begun.
          if (!begun.has(part)) for (const name of namesOf(part)) expect(now(name), name).toBeUndefined();
          begun.add(part);
        },
        after: (part) => {
          told.push(part);
          for (const name of namesOf(part)) expect(now(name), name).toEqual(gradients.get(name));
        },
      });
    });
    const vision = ["visual.merger", "visual.blocks.1", "visual.blocks.0", "visual.patch_embed"];
    expect(told).toEqual([
      ...["head", "model.layers.1", "model.layers.0", "model.embed_tokens"],
      ...(freezeVision ? [] : vision),
    ]);
    for (const { tensor } of model.parameters) tensor.setGrad(null);
  }
});

/** One of two ranks. What it starts is noted; the other one, which adds nothing, has a pass more. */
function oneOfTwo(rank: number) {
  const travelled: number[] = [];
  const group = {
    reduceScatter: ({ numel }: Tensor) => {
      travelled.push(numel);
      return { wait: () => {} };
    },
  };
  const gather = (passes: number) => [passes, passes + 1];
  return {
    travelled,
    ranks: Object.assign(Object.create(Ranks.prototype), { rank, world: 2, group, gather }) as Ranks,
  };
}

test.each(
  [WholeGradients, ShardedGradients].flatMap((kind) => [[kind, false] as const, [kind, true] as const]),
)("%o, tied head %s: each rank gets its parts of all passes, and buckets travel in one order", (kind, tied) => {
  const config = tinyConfig(tied);
  using model = shakenModel(config, 4);
  const withMedia = randomGroup(config, 1, { images: [[1, 4, 4]], completions: [3, 5] });
  const textOnly = randomGroup(config, 2, { completions: [8] });
  const d = Array.from({ length: 8 }, (_, i) => i - 2.5);
  const groups = [withMedia, textOnly, withMedia];
  const expected = groups.map((group) => gradientsOf(model, [group], d).gradients);
  const layout = bucketLayout(
    model.parameters.map(({ name, tensor: { numel } }) => ({ name, numel })),
    2,
  );
  const flat = new Float64Array(layout.size);
  for (const [p, { name, tensor }] of model.parameters.entries()) {
    for (let i = 0; i < tensor.numel; i++)
      flat[(layout.starts[p] as number) + i] = expected.reduce((sum, one) => sum + (one.get(name)?.[i] as number), 0);
  }
  for (const rank of [0, 1]) {
    const { travelled, ranks } = oneOfTwo(rank);
    using gradients = new kind(model.parameters, layout, ranks);
    for (let update = 0; update < 2; update++) {
      travelled.length = 0;
      gradients.begin(groups.length);
      for (const [i, group] of groups.entries()) {
        scope(() => {
          using pass = model.pass(packGroups([group]), { grad: true });
          gradients.backward((watch) => pass.backward(fromArray(d, [8], { dtype: "float64" }), null, watch));
        });
        const rounds = kind === WholeGradients ? (i === groups.length - 1 ? 1 : 0) : i + 1;
        expect(travelled).toHaveLength(rounds * layout.buckets.length);
      }
      gradients.reduce();
    }
    const order = layout.buckets.map(({ size }) => size).reverse();
    const rounds = kind === WholeGradients ? 1 : groups.length + 1;
    expect(travelled).toEqual(Array.from({ length: rounds }, () => order).flat());
    for (const [i, { begin, size, part }] of layout.buckets.entries()) {
      const from = begin + (rank * size) / 2;
      const got = (gradients.own[i] as Tensor).toNumbers();
      const off = got.map((value, k) => Math.abs(value - (flat[from + k] as number)));
      expect(got).toHaveLength(size / 2);
      expect(Math.max(...off), part).toBeLessThan(1e-10);
    }
  }
});

test("the arena has room for the largest part, and for two layers, one after the other in either order", () => {
  const numels = { "model.embed_tokens.weight": 2000, "model.layers.0.a": 900, "model.layers.1.a": 900 };
  const all = { ...numels, "model.layers.2.a": 900, "model.norm.weight": 10, "lm_head.weight": 2000 };
  const layoutOf = (some: object) =>
    bucketLayout(
      Object.entries(some).map(([name, numel]) => ({ name, numel })),
      2,
    );
  const layout = layoutOf(all);
  const sizes = layout.buckets.map(({ size }) => size);
  expect(sizes).toEqual([2048, 1024, 1024, 1024, 2560]);
  for (const order of ["forward", "backward"] as const) {
    const arena = new BucketArena(layout, order);
    expect(arena.size).toBe(2560);
    const walk = order === "forward" ? [1, 2, 3] : [3, 2, 1];
    for (const [k, i] of walk.slice(1).entries()) expect(arena.collide(i, walk[k] as number)).toBe(false); // neighbours
    for (const i of walk) expect([arena.collide(i, 0), arena.collide(i, 4)]).toContain(true);
    for (const [i, offset] of arena.offsets.entries()) expect(offset + (sizes[i] as number)).toBeLessThanOrEqual(2560);
  }
  const { "lm_head.weight": _, ...tied } = all;
  const arena = new BucketArena(layoutOf(tied), "backward");
  expect(arena.size).toBe(2048 + 2 * 1024); // the embedding stays throughout a pass
  for (const i of [1, 2, 3, 4]) expect(arena.collide(0, i)).toBe(false);
  expect(arenaElements(layoutOf(tied))).toBe(arena.size);
});
