import { expect, test } from "vitest";
import { normal } from "../../src/random.ts";
import { DecodePlan } from "../../src/rollout/decode-plan.ts";
import { KvCache } from "../../src/rollout/kv-cache.ts";
import { type KvShape, kvBytes } from "../../src/rollout/kv-shape.ts";
import { add_, zeros } from "../../src/torch/ops.ts";
import { liveTensors, scope } from "../../src/torch/scope.ts";
import { fromArray } from "../../src/torch/tensor.ts";

const R = 2; // query heads per key/value head
const shape: KvShape = { layers: 2, questions: 3, group: 2, kvHeads: 3, headDim: 4, promptSlots: 7, ownSlots: 5 };
const promptLengths = [4, 7, 1];
const value = (...keys: (string | number)[]) => Math.fround(normal("plan", ...keys));

/** Keys or values by what they belong to: question q's prompt token t, or token t of completion (q, g). */
const promptEntry = (kind: string, layer: number, q: number, t: number, head: number) =>
  Array.from({ length: shape.headDim }, (_, d) => value(kind, layer, q, t, head, d));
const ownEntry = (kind: string, layer: number, q: number, g: number, t: number, head: number) =>
  Array.from({ length: shape.headDim }, (_, d) => value(kind, "own", layer, q, g, t, head, d));

/** softmax(q k / sqrt(D)) v over all tokens of the prompt and the completion's own up to `step`, in float64. */
function reference(layer: number, step: number): number[] {
  const out: number[] = [];
  for (let q = 0; q < shape.questions; q++) {
    for (let g = 0; g < shape.group; g++) {
      for (let h = 0; h < shape.kvHeads * R; h++) {
        const head = Math.floor(h / R);
        const query = Array.from({ length: shape.headDim }, (_, d) => value("q", layer, q, g, step, h, d));
        const entries = (kind: string) => [
          ...Array.from({ length: promptLengths[q] as number }, (_, t) => promptEntry(kind, layer, q, t, head)),
          ...Array.from({ length: step + 1 }, (_, t) => ownEntry(kind, layer, q, g, t, head)),
        ];
        const weights = entries("k").map((k) =>
          Math.exp(k.reduce((sum, x, d) => sum + x * (query[d] as number), 0) / 2),
        );
        const total = weights.reduce((a, b) => a + b);
        const values = entries("v");
        for (let d = 0; d < shape.headDim; d++) {
          out.push(weights.reduce((sum, w, t) => sum + w * (values[t]?.[d] as number), 0) / total);
        }
      }
    }
  }
  return out;
}

const heads = Array.from({ length: shape.kvHeads }, (_, head) => head);

test.each([false, true])("equals softmax attention over prompt and own tokens (static shapes: %s)", (staticShapes) => {
  const before = liveTensors();
  scope(() => {
    using cache = new KvCache(shape, promptLengths, { device: "cpu", dtype: "float32" });
    for (let layer = 0; layer < 2; layer++) {
      for (const [q, length] of promptLengths.entries()) {
        const rows = (kind: string) => {
          const entries = Array.from({ length }, (_, t) =>
            heads.flatMap((head) => promptEntry(kind, layer, q, t, head)),
          );
          return fromArray(entries.flat(), [length, shape.kvHeads, shape.headDim]);
        };
        cache.writePrompt(layer, q, rows("k"), rows("v"));
      }
    }
    const step = zeros([1], { dtype: "int64" });
    using plan = new DecodePlan(cache, { step, dtype: "float32", staticShapes });
    for (let t = 0; t < shape.ownSlots; t++) {
      plan.beginStep();
      for (let layer = 0; layer < 2; layer++) {
        const queries: number[] = [];
        const own = { k: [] as number[], v: [] as number[] };
        for (let q = 0; q < shape.questions; q++) {
          for (let g = 0; g < shape.group; g++) {
            for (const kind of ["k", "v"] as const)
              own[kind].push(...heads.flatMap((h) => ownEntry(kind, layer, q, g, t, h)));
            for (let h = 0; h < shape.kvHeads * R; h++) {
              for (let d = 0; d < shape.headDim; d++) queries.push(value("q", layer, q, g, t, h, d));
            }
          }
        }
        const size = [6, shape.kvHeads, shape.headDim];
        const out = plan.attend(
          layer,
          fromArray(queries, [6, shape.kvHeads * R, shape.headDim]),
          fromArray(own.k, size),
          fromArray(own.v, size),
        );
        expect(out.shape).toEqual([6, 6, 4]);
        const expected = reference(layer, t);
        for (const [i, x] of out.toNumbers().entries())
          expect(Math.abs(x - (expected[i] as number))).toBeLessThan(2e-6);
      }
      add_(step, 1);
    }
  });
  expect(liveTensors()).toEqual(before);
});

test("the cache counts its bytes", () => {
  using cache = new KvCache(shape, promptLengths, { device: "cpu", dtype: "bfloat16" });
  const tensors = [...cache.promptK, ...cache.promptV, ...cache.ownK, ...cache.ownV];
  expect(cache.bytes).toBe(tensors.reduce((sum, tensor) => sum + tensor.nbytes, 0));
  expect(cache.dtype).toBe("float32"); // on the CPU
  expect(kvBytes(shape, "bfloat16")).toBe(cache.bytes / 2);
});
