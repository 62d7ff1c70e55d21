/** grove::decode_attention's loops on the CPU against its composition of operators. */

import { expect, test } from "vitest";
import { op } from "../../src/torch/dispatch.ts";
import { clone, cos, indexSelect, randn, sin, zeros } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";

interface Shape {
  heads: number; // H
  kvHeads: number; // HK
  headDim: number; // D
  ownSlots: number; // N
  prompts: number[]; // tokens, 0 for an empty group
  rows: number[][]; // [groups, G], -1 for none
  own: number[]; // own_length of every completion
}

function inputs(shape: Shape, dtype: DType) {
  using generator = new Generator(4);
  const { heads: H, kvHeads: HK, headDim: D, ownSlots: N, prompts, rows, own } = shape;
  const draw = (...sizes: number[]) => randn(sizes, { dtype, generator });
  const ints = (values: number[], sizes: number[] = [values.length]) => fromArray(values, sizes, { dtype: "int32" });
  const [B, G] = [own.length, rows[0]!.length];
  const starts = prompts.map((_, g) => prompts.slice(0, g).reduce((a, b) => a + b, 0));
  const total = prompts.reduce((a, b) => a + b, 0);
  return {
    qkv: draw(B, H + 2 * HK, D),
    cos: cos(draw(B, 1, D)),
    sin: sin(draw(B, 1, D)),
    ownK: draw(B, N, HK, D),
    ownV: draw(B, N, HK, D),
    promptK: draw(total, HK, D),
    promptV: draw(total, HK, D),
    rows: ints(rows.flat(), [rows.length, G]),
    promptStart: ints(starts),
    promptLength: ints(prompts),
    chunkKeys: ints(prompts.map((n) => Math.max(1, n))),
    ownLength: ints(own),
  };
}

/** Output and the caches behind it. */
function run(name: string, x: ReturnType<typeof inputs>, slots: Tensor | null = null): Tensor[] {
  const [ownK, ownV] = [clone(x.ownK), clone(x.ownV)];
  const tables = [x.rows, x.promptStart, x.promptLength, x.chunkKeys, x.ownLength];
  return [op(name)(x.qkv, x.cos, x.sin, ownK, ownV, x.promptK, x.promptV, ...tables, 1, 0.3, slots), ownK, ownV];
}

const shapes: Shape[] = [
  { heads: 1, kvHeads: 1, headDim: 2, ownSlots: 1, prompts: [1], rows: [[0]], own: [0] },
  {
    heads: 4,
    kvHeads: 2,
    headDim: 16,
    ownSlots: 9,
    prompts: [63, 65],
    rows: [
      [0, 1, 2],
      [3, 4, 5],
    ],
    own: [0, 8, 3, 1, 2, 7],
  },
  {
    heads: 6,
    kvHeads: 3,
    headDim: 10,
    ownSlots: 200,
    prompts: [130, 0, 64, 7],
    rows: [
      [4, -1],
      [-1, -1],
      [-1, 0],
      [2, 1],
    ],
    own: [199, 64, 0, 5, 127],
  },
];

test.each(shapes)("agrees with the composition: %j", (shape) => {
  for (const [dtype, digits] of [
    ["float32", 5],
    ["float64", 12],
  ] as const) {
    scope(() => {
      const x = inputs(shape, dtype);
      const expected = run("grove::decode_attention_composed", x);
      run("grove::decode_attention", x).forEach((tensor, i) => {
        const values = tensor.toNumbers();
        const other = expected[i]!.toNumbers();
        expect(values.length).toBe(other.length);
        expect(Math.max(...values.map((v, j) => Math.abs(v - (other[j] as number))))).toBeLessThan(10 ** -digits);
      });
    });
  }
});

test("a completion's result has the same bits whoever shares its prompt", () => {
  scope(() => {
    const shape = {
      ...shapes[1]!,
      rows: [
        [0, 1, 2],
        [3, 4, 5],
      ],
    };
    const x = inputs(shape, "float32");
    const together = run("grove::decode_attention", x)[0] as Tensor;
    const alone = { ...x, rows: fromArray([-1, 1, -1, -1, -1, -1], [2, 3], { dtype: "int32" }) };
    const width = shape.heads * shape.headDim;
    const got = (run("grove::decode_attention", alone)[0] as Tensor).toNumbers();
    expect(got.slice(width, 2 * width)).toEqual(together.toNumbers().slice(width, 2 * width));
    expect(got.slice(2 * width).every((v) => v === 0)).toBe(true);
  });
});

test("completions may lie in other slots than their rows", () => {
  scope(() => {
    const x = inputs(shapes[1]!, "float32");
    const slotOf = [5, 0, 3, 2, 4, 1]; // of each row
    const ids = fromArray(slotOf, [6], { dtype: "int64" });
    const rowsFirst = {
      ...x,
      ...Object.fromEntries((["ownK", "ownV", "ownLength"] as const).map((key) => [key, indexSelect(x[key], 0, ids)])),
    };
    const [expected, expectedK, expectedV] = run("grove::decode_attention", rowsFirst as typeof x) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const [got, ownK, ownV] = run("grove::decode_attention", x, fromArray(slotOf, [6], { dtype: "int32" })) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    expect(got.toNumbers()).toEqual(expected.toNumbers());
    expect(indexSelect(ownK, 0, ids).toNumbers()).toEqual(expectedK.toNumbers());
    expect(indexSelect(ownV, 0, ids).toNumbers()).toEqual(expectedV.toNumbers());
  });
});

// bfloat16 goes by the composition, on the CPU too
test.each(["float32", "bfloat16"] as const)("refuses rows, slots and prompts that are not there: %s", (dtype) => {
  scope(() => {
    const x = inputs(shapes[0]!, dtype);
    const int = (value: number, sizes = [1]) => fromArray([value], sizes, { dtype: "int32" });
    const tried = (more: Partial<typeof x>, slots: Tensor | null = null) => {
      return () => run("grove::decode_attention", { ...x, ...more }, slots);
    };
    expect(tried({ ownLength: int(1) })).toThrow(/own_length must be below 1/);
    expect(tried({ ownLength: int(-1) })).toThrow(/own_length must be below 1/);
    expect(tried({ promptLength: int(2) })).toThrow(/prompt 0 \+ 2 of 1 tokens/);
    expect(tried({ rows: int(5e7, [1, 1]) })).toThrow(/row 50000000 of 1/);
    expect(tried({}, int(5e7))).toThrow(/row 0 in slot 50000000 of 1/);
    expect(tried({ rows: int(-1, [1, 1]), promptLength: int(9) })).not.toThrow(); // nobody looks there
  });
});

test("refuses heads that cannot be grouped or turned", () => {
  scope(() => {
    const x = inputs(shapes[0]!, "float32");
    const none = {
      ownK: zeros([1, 1, 0, 2]),
      ownV: zeros([1, 1, 0, 2]),
      promptK: zeros([1, 0, 2]),
      promptV: zeros([1, 0, 2]),
    };
    expect(() => run("grove::decode_attention", { ...x, ...none })).toThrow(/do not fit 0 key\/value heads/);
    const odd = inputs({ ...shapes[0]!, headDim: 3 }, "float32");
    expect(() => run("grove::decode_attention", odd)).toThrow(/heads of an even size, got 3/);
  });
});
