/**
 * grove::decode_attention on CUDA against the composition of ATen operators in float64, and against training's attention of the same tokens,
 * which it must equal bit for bit while a prompt is one chunk.
 */

import { expect } from "vitest";
import { PackedPlan } from "../../src/model/attention.ts";
import { Rope, rotate } from "../../src/model/rope.ts";
import { randomInt } from "../../src/random.ts";
import { versions } from "../../src/torch/cuda.ts";
import { op } from "../../src/torch/dispatch.ts";
import { cast, cat, clone, full, indexSelect, randn, select, slice, zeros } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";

interface Case {
  prompts: number[];
  group: number;
  heads: [query: number, keyValue: number, size: number];
  ownSlots: number;
}

const cases: Record<string, Case> = {
  "7B heads, 8 completions, odd lengths": {
    prompts: [931, 900, 64, 1, 129],
    group: 8,
    heads: [28, 4, 128],
    ownSlots: 256,
  },
  "2B heads, 64 completions": { prompts: [200, 77], group: 64, heads: [12, 2, 128], ownSlots: 130 },
  "one completion": { prompts: [931, 63], group: 1, heads: [28, 4, 128], ownSlots: 64 },
  "72B heads": { prompts: [333, 65], group: 16, heads: [64, 8, 128], ownSlots: 70 },
  "head size 64, as many key/value heads": { prompts: [150, 300], group: 3, heads: [8, 8, 64], ownSlots: 100 },
  "head size 64, four to one": { prompts: [1000, 127, 128], group: 5, heads: [16, 4, 64], ownSlots: 300 },
  "eight query heads to one": { prompts: [257], group: 9, heads: [8, 1, 128], ownSlots: 40 },
};

/** Random tensors of a case in bfloat16, and the lengths of the completions' own tokens before the newest. */
function inputs({ prompts, group, heads: [H, K, D], ownSlots }: Case) {
  using generator = new Generator(7, "cuda");
  const B = prompts.length * group;
  const draw = (...size: number[]) => cast(randn(size, { device: "cuda", generator }), "bfloat16");
  const int = (values: number[], size = [values.length]) =>
    fromArray(Int32Array.from(values), size, { dtype: "int32", device: "cuda" });
  const own = Array.from({ length: B }, (_, b) => randomInt(ownSlots, "own", b));
  using rope = new Rope({ sections: [D / 2], theta: 1e4, restart: false, device: "cuda" });
  const starts = prompts.map((_, i) => prompts.slice(0, i).reduce((a, b) => a + b, 0));
  const total = prompts.reduce((a, b) => a + b, 0);
  return {
    own,
    table: rope.table(
      Int32Array.from(own, (n) => 1000 + n),
      "bfloat16",
    ),
    qkv: draw(B, H + 2 * K, D),
    ownK: draw(B, ownSlots, K, D),
    ownV: draw(B, ownSlots, K, D),
    promptK: draw(total, K, D),
    promptV: draw(total, K, D),
    rows: int([...Array(B).keys()], [prompts.length, group]),
    starts: int(starts),
    lengths: int(prompts),
    ownLength: int(own),
    arrived: zeros([2 * prompts.length * K], { dtype: "int32", device: "cuda" }),
  };
}
type Inputs = ReturnType<typeof inputs>;

function run(
  name: "decode_attention" | "decode_attention_composed",
  x: Inputs,
  chunks: number,
  chunkKeys: number,
): Tensor {
  return op(`grove::${name}`)(
    ...[x.qkv, x.table.cos, x.table.sin, x.ownK, x.ownV, x.promptK, x.promptV, x.rows, x.starts, x.lengths],
    ...[x.ownLength, x.arrived, chunks, chunkKeys, x.qkv.size(2) ** -0.5],
  );
}

const wide = (x: Inputs): Inputs => {
  const as64 = (t: Tensor) => cast(t, "float64");
  // rotated in bfloat16 as the kernel does it, so that what is compared is the attention: an angle of 0 for what is rotated already
  const K = x.ownK.size(2);
  const H = x.qkv.size(1) - 2 * K;
  const turned = cat([rotate(slice(x.qkv, 1, 0, H + K), x.table), slice(x.qkv, 1, H + K, H + 2 * K)], 1);
  const options = { dtype: "float64", device: "cuda" } as const;
  const identity = { cos: full(x.table.cos.shape, 1, options), sin: zeros(x.table.sin.shape, options) };
  const [qkv, ownK, ownV, promptK, promptV] = [turned, x.ownK, x.ownV, x.promptK, x.promptV].map(as64) as [
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
  ];
  return { ...x, table: identity, qkv, ownK, ownV, promptK, promptV };
};

const relative = (a: Tensor, b: Tensor) => {
  const [x, y] = [a.toNumbers(), b.toNumbers()];
  const sum = (f: (i: number) => number) => y.reduce((total, _, i) => total + f(i), 0);
  return Math.sqrt(sum((i) => ((x[i] as number) - (y[i] as number)) ** 2) / sum((i) => (y[i] as number) ** 2));
};

gpuTest.each(Object.entries(cases))("%s: the kernel against float64, whatever the chunks", (_name, shape) => {
  scope(() => {
    const x = inputs(shape);
    const exact = run("decode_attention_composed", wide(x), 1, 1 << 30);
    const longest = Math.max(...shape.prompts);
    for (const chunks of [1, 3, 16]) {
      const chunkKeys = Math.ceil(longest / chunks / 64) * 64;
      const first = run("decode_attention", x, chunks, chunkKeys);
      expect(relative(first, exact), `${chunks} chunks`).toBeLessThan(5e-3);
      // the counters are back at zero, and the newest token is written where it belongs: a second call gives the same bits
      expect(run("decode_attention", x, chunks, chunkKeys).toNumbers()).toEqual(first.toNumbers());
      expect(x.arrived.toNumbers().every((n) => n === 0)).toBe(true);
    }
  });
});

gpuTest.each(Object.entries(cases))("%s: the same bits as training's attention", (_name, shape) => {
  if (!versions().kernels) return; // the composition rounds elsewhere
  const [H, K, D] = shape.heads;
  scope(() => {
    const x = inputs(shape);
    const got = run("decode_attention", x, 1, 1 << 30);
    const turned = rotate(slice(x.qkv, 1, 0, H + K), x.table);
    using generator = new Generator(8, "cuda");
    const draw = (n: number, heads: number) => cast(randn([n, heads, D], { device: "cuda", generator }), "bfloat16");
    // A pack whose completions end with the tokens just decoded; the queries before them are anything.
    const completionLengths = shape.prompts.map((_, g) =>
      x.own.slice(g * shape.group, (g + 1) * shape.group).map((n) => n + 1),
    );
    const total = x.promptK.size(0);
    const perRow = (last: Tensor, before: (b: number, n: number) => Tensor) =>
      cat(x.own.flatMap((n, b) => (n > 0 ? [before(b, n), slice(last, 0, b, b + 1)] : [slice(last, 0, b, b + 1)])));
    const q = cat([draw(total, H), perRow(slice(turned, 1, 0, H), (_, n) => draw(n, H))]);
    const ofOwn = (own: Tensor) => (b: number, n: number) => slice(select(own, 0, b), 0, 0, n);
    const k = cat([x.promptK, perRow(slice(turned, 1, H, H + K), ofOwn(x.ownK))]);
    const v = cat([x.promptV, perRow(slice(x.qkv, 1, H + K, H + 2 * K), ofOwn(x.ownV))]);
    using plan = new PackedPlan({ promptLengths: shape.prompts, completionLengths });
    const all = plan.attend(0, q, k, v);
    const ends: number[] = [];
    for (const n of completionLengths.flat()) ends.push((ends.at(-1) ?? total - 1) + n);
    const expected = indexSelect(
      all,
      0,
      fromArray(Int32Array.from(ends), [ends.length], { dtype: "int64", device: "cuda" }),
    );
    expect(clone(got).toNumbers()).toEqual(expected.toNumbers());
  });
});

gpuTest("rows of no group are left alone, and groups may have holes", () => {
  scope(() => {
    const x = inputs({ prompts: [100, 50], group: 4, heads: [8, 2, 128], ownSlots: 32 });
    const whole = run("decode_attention", x, 1, 1 << 30);
    const rows = fromArray(Int32Array.of(0, -1, 2, -1, -1, -1, 6, 7), [2, 4], { dtype: "int32", device: "cuda" });
    const some = run("decode_attention", { ...x, rows }, 1, 1 << 30);
    for (const row of [0, 2, 6, 7]) expect(select(some, 0, row).toNumbers()).toEqual(select(whole, 0, row).toNumbers());
  });
});
