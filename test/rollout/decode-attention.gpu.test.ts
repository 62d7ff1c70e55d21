/**
 * grove::decode_attention on CUDA against the composition of ATen operators in float64, and against training's attention of the same tokens,
 * which it must equal bit for bit.
 */

import { expect } from "vitest";
import { PackedPlan } from "../../src/model/attention.ts";
import { MAX_PROMPT_CHUNKS, promptChunkKeys, promptChunks } from "../../src/model/prompt-chunks.ts";
import { Rope, rotate } from "../../src/model/rope.ts";
import { randomInt } from "../../src/random.ts";
import { versions } from "../../src/torch/cuda.ts";
import { op } from "../../src/torch/dispatch.ts";
import { cast, cat, clone, fill_, full, indexSelect, randn, select, slice, zeros } from "../../src/torch/ops.ts";
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
  "as many key/value heads": { prompts: [300, 256, 255], group: 40, heads: [3, 3, 128], ownSlots: 70 },
  "head size 64, sixteen to one": { prompts: [700, 300], group: 5, heads: [32, 2, 64], ownSlots: 140 },
  "sixteen query heads to one": { prompts: [511, 513], group: 11, heads: [32, 2, 128], ownSlots: 129 },
  "chunks of more than 256 keys, groups of unlike lengths": {
    prompts: [5000, 3, 4097, 600],
    group: 2,
    heads: [12, 2, 128],
    ownSlots: 30,
  },
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
    prompts,
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
    chunkKeys: int(prompts.map(promptChunkKeys)),
    ownLength: int(own),
    slots: null as Tensor | null,
  };
}
type Inputs = ReturnType<typeof inputs>;

function run(
  name: "decode_attention" | "decode_attention_composed",
  x: Inputs,
  chunks = Math.max(1, ...x.prompts.map(promptChunks)),
): Tensor {
  return op(`grove::${name}`)(
    ...[
      x.qkv,
      x.table.cos,
      x.table.sin,
      x.ownK,
      x.ownV,
      x.promptK,
      x.promptV,
      x.rows,
      x.starts,
      x.lengths,
      x.chunkKeys,
    ],
    ...[x.ownLength, chunks, x.qkv.size(2) ** -0.5, x.slots],
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

gpuTest.each(Object.entries(cases))("%s: the kernel against float64", (_name, shape) => {
  scope(() => {
    const x = inputs(shape);
    const exact = run("decode_attention_composed", wide(x));
    const first = run("decode_attention", x);
    expect(relative(first, exact)).toBeLessThan(5e-3);
    // the newest token is written where it belongs, and room for more chunks than there are changes nothing: the same bits again
    expect(run("decode_attention", x, MAX_PROMPT_CHUNKS).toNumbers()).toEqual(first.toNumbers());
  });
});

gpuTest("where a prompt is cut is the caller's choice", () => {
  scope(() => {
    const x = inputs({ prompts: [900, 100], group: 8, heads: [28, 4, 128], ownSlots: 20 });
    const exact = run("decode_attention_composed", wide(x));
    for (const keys of [128, 384, 1024]) {
      const chunkKeys = full([2], keys, { dtype: "int32", device: "cuda" });
      const got = run("decode_attention", { ...x, chunkKeys }, Math.ceil(900 / keys));
      expect(relative(got, exact), `${keys} keys`).toBeLessThan(5e-3);
    }
  });
});

gpuTest.each(Object.entries(cases))("%s: the same bits as training's attention", (_name, shape) => {
  if (!versions().kernels) return; // the composition rounds elsewhere
  const [H, K, D] = shape.heads;
  scope(() => {
    const x = inputs(shape);
    const got = run("decode_attention", x);
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

gpuTest("groups may have holes or be empty, prompts too, and the batch does not matter", () => {
  scope(() => {
    const x = inputs({ prompts: [300, 50, 0, 600], group: 4, heads: [8, 2, 128], ownSlots: 32 });
    const whole = run("decode_attention", x);
    const none = [-1, -1, -1, -1];
    const table = Int32Array.of(3, -1, 0, -1, ...none, -1, -1, 9, 8, ...none);
    const rows = fromArray(table, [4, 4], { dtype: "int32", device: "cuda" });
    const some = run("decode_attention", { ...x, rows });
    for (const row of [0, 3, 8, 9]) expect(select(some, 0, row).toNumbers()).toEqual(select(whole, 0, row).toNumbers());
  });
});

gpuTest("a row's own tokens may lie in another slot", () => {
  scope(() => {
    const x = inputs({ prompts: [100, 300], group: 4, heads: [28, 4, 128], ownSlots: 150 });
    const plain = run("decode_attention", x).toNumbers();
    const slotOf = [5, 0, 7, 2, 1, 6, 3, 4];
    const rowOf = slotOf.map((_, slot) => slotOf.indexOf(slot));
    const index = (values: number[], dtype: "int32" | "int64") =>
      fromArray(Int32Array.from(values), [values.length], { dtype, device: "cuda" });
    const moved = (t: Tensor) => indexSelect(t, 0, index(rowOf, "int64"));
    const elsewhere = { ...x, ownK: moved(x.ownK), ownV: moved(x.ownV), ownLength: moved(x.ownLength) };
    expect(run("decode_attention", { ...elsewhere, slots: index(slotOf, "int32") }).toNumbers()).toEqual(plain);
  });
});

gpuTest("what is no number in a prompt is none in what attends to it", () => {
  scope(() => {
    const x = inputs({ prompts: [300, 50], group: 2, heads: [8, 2, 128], ownSlots: 32 });
    fill_(slice(x.promptK, 0, 10, 11), Number.NaN);
    const got = run("decode_attention", x);
    expect(slice(got, 0, 0, 2).toNumbers().every(Number.isNaN)).toBe(true);
    expect(slice(got, 0, 2, 4).toNumbers().some(Number.isNaN)).toBe(false);
  });
});
