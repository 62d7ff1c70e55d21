/** What is computed again changes no bit: gradients of every parameter at every level, against a pass that keeps everything. */

import { describe, expect, test } from "vitest";
import { type PackedGroup, packGroups } from "../../src/model/packed.ts";
import { releasedConfig } from "../../src/model/qwen2vl/released.ts";
import { textLayerCost, visionBlockCost } from "../../src/model/recompute.ts";
import type { Recompute } from "../../src/model/tape.ts";
import { normal } from "../../src/random.ts";
import { op, opN } from "../../src/torch/dispatch.ts";
import { ones, zeros } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";
import { gradientsOf, randomGroup, shakenModel, tinyConfig } from "./support.ts";

const LEVELS: Recompute[] = ["norms", "mlp", "layer"];
const weightsFor = (groups: PackedGroup[]) => {
  const tokens = groups.flatMap((group) => group.completions).reduce((sum, ids) => sum + ids.length, 0);
  return Float64Array.from({ length: tokens }, (_, i) => normal("weights", i));
};

/** Odd shapes: frames of several sizes, text only, one row, an empty completion. */
const config = tinyConfig();
const shapes: Record<string, PackedGroup[]> = {
  "frames of several sizes": [
    randomGroup(config, 1, {
      videos: [
        [2, 4, 6],
        [1, 2, 2],
      ],
      images: [[1, 2, 4]],
      completions: [5, 1, 7],
    }),
    randomGroup(config, 2, { images: [[1, 6, 2]], completions: [4, 0, 6] }),
  ],
  "one video of equal frames": [randomGroup(config, 3, { videos: [[3, 4, 4]], completions: [9] })],
  "text alone": [randomGroup(config, 4, { completions: [3, 2] }), randomGroup(config, 5, { completions: [1] })],
};

describe.each(["float32", "float64"] as const)("%s", (dtype) => {
  test.each(Object.keys(shapes))("%s: the same bits at every level", (name) => {
    const groups = shapes[name] as PackedGroup[];
    using model = shakenModel(config, 21, dtype);
    const weights = weightsFor(groups);
    const kept = gradientsOf(model, groups, weights);
    for (const level of LEVELS) expect(gradientsOf(model, groups, weights, { recompute: level }), level).toEqual(kept);
    for (const [text, vision] of [
      ["none", "mlp"],
      ["norms", "layer"],
      ["layer", "norms"],
    ] as const)
      expect(gradientsOf(model, groups, weights, { recompute: { text, vision } }), `${text}, ${vision}`).toEqual(kept);
  });

  test("a tied head, a frozen tower, masks instead of the kernel", () => {
    const groups = shapes["frames of several sizes"] as PackedGroup[];
    const weights = weightsFor(groups);
    using model = shakenModel(tinyConfig(true), 22, dtype);
    for (const options of [{}, { freezeVision: true }, { attention: "dense" as const }]) {
      const kept = gradientsOf(model, groups, weights, options);
      for (const level of LEVELS)
        expect(gradientsOf(model, groups, weights, { ...options, recompute: level })).toEqual(kept);
    }
  });
});

test("parameters that want no gradient get none, and change nothing for the others", () => {
  const groups = shapes["one video of equal frames"] as PackedGroup[];
  const weights = weightsFor(groups);
  // one of each kind: norms, a product of either half, a bias
  const frozen = [
    /layers\.0.*norm/,
    /layers\.1.*(qkv|gate_up)/,
    /blocks\.0.*(norm1|fc1)/,
    /blocks\.1.*(fc2|qkv\.bias)/,
  ];
  const run = (recompute: Recompute) => {
    using model = shakenModel(config, 23);
    const still = model.parameters.filter(({ name }) => frozen.some((pattern) => pattern.test(name)));
    expect(still.length).toBeGreaterThan(6);
    for (const { tensor } of still) tensor.setRequiresGrad(false);
    const result = scope(() => {
      using pass = model.pass(packGroups(groups), { grad: true, recompute });
      pass.backward(fromArray(weights, [weights.length]));
      return model.parameters.map(({ name, tensor }) => [name, tensor.grad?.toNumbers() ?? null] as const);
    });
    for (const { name } of still) expect(result.find(([other]) => other === name)?.[1], name).toBeNull();
    return result;
  };
  const kept = run("none");
  for (const level of LEVELS) expect(run(level), level).toEqual(kept);
});

test("no level leaks a tensor, walked back or not", () => {
  const groups = shapes["frames of several sizes"] as PackedGroup[];
  using model = shakenModel(config, 24);
  const before = liveTensors();
  for (const level of LEVELS) {
    gradientsOf(model, groups, weightsFor(groups), { recompute: level });
    scope(() => model.pass(packGroups(groups), { grad: true, recompute: level })[Symbol.dispose]());
    expect(liveTensors(), level).toEqual(before);
  }
});

test("Qwen2-VL-7B in bfloat16: bytes kept and FLOPs done again, as the table says", () => {
  const shape = releasedConfig("7B");
  const bytes = ({ kept, kept32 }: { kept: number; kept32: number }) => 2 * kept + 4 * kept32;
  const text = (level: Recompute) => textLayerCost(shape, level);
  expect((["none", ...LEVELS] as const).map((level) => bytes(text(level)))).toEqual([129_136, 106_608, 30_832, 7_168]);
  const vision = (level: Recompute) => visionBlockCost(shape, level, true);
  expect((["none", ...LEVELS] as const).map((level) => bytes(vision(level)))).toEqual([46_144, 25_664, 15_424, 2_560]);
  expect(text("mlp").flops / text("layer").flops).toBeCloseTo(0.583, 3);
  expect(vision("mlp").flops / vision("layer").flops).toBeCloseTo(1 / 3, 10);
  expect([text("norms").flops, vision("norms").flops]).toEqual([0, 0]);
});

test("a norm's weight of another width is refused, not read beyond its end", () => {
  const eps = 1e-6;
  scope(() => {
    const x = ones([4, 64]);
    const narrow = ones([1]);
    const [gateUp, down] = [zeros([2, 64]), zeros([64, 1])];
    const message = /expected weight \[64\], got \[1\]/;
    expect(() => opN("grove::norm_linear")(x, narrow, null, eps, gateUp, null, true)).toThrow(message);
    expect(() => op("grove::swiglu_mlp")(x, narrow, eps, gateUp, down)).toThrow(message);
    expect(() => op("grove::rms_norm")(x, narrow, eps)).toThrow(message);
    const bias = zeros([2]);
    expect(() => op("grove::quick_gelu_mlp")(x, narrow, narrow, eps, gateUp, bias, zeros([64, 2]), bias)).toThrow(
      message,
    );
  });
});
