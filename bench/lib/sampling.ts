/** What drawing a token per row takes by itself. */

import { TokenSampler } from "../../src/rollout/sample-token.ts";
import { CudaGraph } from "../../src/torch/cuda.ts";
import { randn, zeros } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray } from "../../src/torch/tensor.ts";
import { deviceMs } from "./hardware.ts";

/** Logits enough that they do not stay in the cache from one draw to the next, which in a decode step they do: the time is an upper bound. */
const BUFFERS = 6;
const DRAWS = 3 * BUFFERS;

/** Milliseconds of one draw for bfloat16 logits [rows, vocab], temperature 1 and nothing cut off, as a CUDA graph. */
export function drawMs(rows: number, vocabSize: number): number {
  return scope(() => {
    const device = "cuda";
    const clear = (size: number[], dtype: DType) => zeros(size, { dtype, device });
    const room = 4096;
    const everySlot = fromArray(Int32Array.from(Array(rows).keys()), [rows], { device });
    const state = {
      key: clear([rows, 2], "int32"),
      limit: fromArray(new Int32Array(rows).fill(room), [rows], { device }),
      tokens: clear([rows], "int64"),
      ropePositions: clear([3, rows], "int64"),
      ownLength: fromArray(new Int32Array(rows).fill(-1), [rows], { device }),
      done: clear([rows], "int32"),
      ids: clear([rows, room], "int32"),
      logprobs: clear([rows, room], "float32"),
      sampledLogprobs: clear([rows, room], "float32"),
      entropies: clear([rows, room], "float32"),
    };
    const logits = Array.from({ length: BUFFERS }, () => randn([rows, vocabSize], { dtype: "bfloat16", device }));
    using sampler = new TokenSampler(vocabSize, [], { temperature: 1, topK: 0, topP: 1 }, device);
    const draws = () => {
      for (let i = 0; i < DRAWS; i++) sampler.advance(logits[i % BUFFERS]!, everySlot, everySlot, state);
    };
    draws();
    using graph = new CudaGraph();
    graph.capture(draws);
    return deviceMs(() => graph.replay()) / DRAWS;
  });
}
