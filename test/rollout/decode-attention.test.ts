/** grove::decode_attention on the CPU, and the composition of ATen operators, against masked attention over the packed tokens; and its checks. */

import { describe, expect, test } from "vitest";
import { PackedPlan } from "../../src/model/attention.ts";
import { chunkTables, MAX_PROMPT_CHUNKS, promptChunkKeys, promptChunks } from "../../src/model/prompt-chunks.ts";
import { op } from "../../src/torch/dispatch.ts";
import { cat, full, randn, select, slice, zeros } from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";

const [H, K, D, N] = [6, 2, 8, 9];
const prompts = [300, 1, 0, 17];
const own = [0, 8, 3, 4, 5, 0]; // tokens before the newest
const rows = [2, -1, 0, -1, -1, 5, -1, -1, -1, -1, 1, 4];

const int = (values: number[], size = [values.length]) => fromArray(Int32Array.from(values), size, { dtype: "int32" });

function inputs() {
  using generator = new Generator(3, "cpu");
  const draw = (...size: number[]) => randn(size, { generator, dtype: "float64" });
  const total = prompts.reduce((a, b) => a + b, 0);
  return {
    qkv: draw(own.length, H + 2 * K, D),
    // not rotated: what is compared is the attention
    cos: full([own.length, D], 1, { dtype: "float64" }),
    sin: zeros([own.length, D], { dtype: "float64" }),
    ownK: draw(own.length, N, K, D),
    ownV: draw(own.length, N, K, D),
    promptK: draw(total, K, D),
    promptV: draw(total, K, D),
    rows: int(rows, [4, 3]),
    starts: int(prompts.map((_, i) => prompts.slice(0, i).reduce((a, b) => a + b, 0))),
    lengths: int(prompts),
    chunkKeys: int(prompts.map(promptChunkKeys)),
    ownLength: int(own),
    slots: null as Tensor | null,
  };
}

function run(name: string, x: ReturnType<typeof inputs>, chunks = 2): Tensor {
  return op(`grove::${name}`)(...Object.values(x).slice(0, 12), chunks, D ** -0.5, x.slots);
}

/** Each row's output by a pack of its own: its prompt, and a completion that ends with its newest token. */
function expected(x: ReturnType<typeof inputs>, group: number, row: number): number[] {
  const [length, n] = [prompts[group] as number, own[row] as number];
  const start = prompts.slice(0, group).reduce((a, b) => a + b, 0);
  const newest = slice(x.qkv, 0, row, row + 1);
  const keys = (prompt: Tensor, ownTokens: Tensor, head: number) =>
    cat(
      [
        slice(prompt, 0, start, start + length),
        slice(select(ownTokens, 0, row), 0, 0, n),
        slice(newest, 1, head, head + K),
      ],
      0,
    );
  const q = cat([zeros([length + n, H, D], { dtype: "float64" }), slice(newest, 1, 0, H)], 0);
  using plan = new PackedPlan({ promptLengths: [length + n + 1], completionLengths: [[]] }, "dense");
  const out = plan.attend(0, q, keys(x.promptK, x.ownK, H), keys(x.promptV, x.ownV, H + K));
  return slice(out, 0, length + n, length + n + 1).toNumbers();
}

describe("decode attention", () => {
  test.each(["decode_attention", "decode_attention_composed"])("%s is masked attention over all tokens", (name) => {
    scope(() => {
      const x = inputs();
      const out = run(name, x);
      rows.forEach((row, i) => {
        if (row < 0) return;
        const wanted = expected(x, Math.floor(i / 3), row);
        select(out, 0, row)
          .toNumbers()
          .forEach((value, j) => {
            expect(value, `row ${row}, value ${j}`).toBeCloseTo(wanted[j] as number, 10);
          });
        // the newest token is in the cache
        const cached = select(select(x.ownV, 0, row), 0, own[row] as number).toNumbers();
        expect(cached).toEqual(select(slice(x.qkv, 1, H + K, H + 2 * K), 0, row).toNumbers());
      });
    });
  });

  test.each(["decode_attention", "decode_attention_composed"])("%s finds a row's tokens in its slot", (name) => {
    scope(() => {
      const plain = inputs();
      const wanted = run(name, plain).toNumbers();
      const x = inputs();
      // one slot more than there are rows, and row b in slot b + 1
      const behind = (t: Tensor) => cat([slice(t, 0, 0, 1), t], 0);
      const moved = { ...x, ownK: behind(x.ownK), ownV: behind(x.ownV), ownLength: behind(x.ownLength) };
      expect(run(name, { ...moved, slots: int([1, 2, 3, 4, 5, 6]) }).toNumbers()).toEqual(wanted);
    });
  });

  test("arguments that do not fit are refused with their shapes", () => {
    scope(() => {
      const x = inputs();
      expect(() => run("decode_attention", { ...x, chunkKeys: int([1]) })).toThrow(/chunk_keys \[4\].*got.*\[1\]/);
      expect(() => run("decode_attention", { ...x, ownLength: int([1, 2]) })).toThrow(/own_length \[6\].*got.*\[2\]/);
      expect(() => run("decode_attention", x, 0)).toThrow(/chunks must be 1 to 16, got 0/);
      expect(() => run("decode_attention", x, MAX_PROMPT_CHUNKS + 1)).toThrow(/chunks must be 1 to 16, got 17/);
    });
  });
});

describe("prompt chunks", () => {
  test("are of 256 keys while 16 suffice, then whole key blocks, and never more", () => {
    expect([1, 256, 257, 931, 4096, 4097, 10_000].map((n) => [promptChunkKeys(n), promptChunks(n)])).toEqual([
      [256, 1],
      [256, 1],
      [256, 2],
      [256, 4],
      [256, 16],
      [384, 11],
      [640, 16],
    ]);
    expect(promptChunks(0)).toBe(0);
    for (let n = 1; n < 50_000; n += 37) {
      expect(promptChunkKeys(n) % 128).toBe(0);
      expect(promptChunks(n)).toBeLessThanOrEqual(MAX_PROMPT_CHUNKS);
    }
  });

  test("the tables of packed prompts cover every key once", () => {
    expect(chunkTables([300, 5, 600])).toEqual({
      chunks: 3,
      starts: Int32Array.of(0, 300, 305, 905, 256, 305, 561, 905, 300, 305, 817, 905),
      lengths: Int32Array.of(256, 5, 256, 44, 0, 256, 0, 0, 88),
    });
    expect(chunkTables([])).toEqual({ chunks: 1, starts: Int32Array.of(0), lengths: new Int32Array(0) });
  });
});
