/** On CUDA gradients of parameters go straight into `.grad` (native/gradient.cc), in bfloat16 by kernels. */

import { expect } from "vitest";
import { ChunkedLogprobs } from "../../src/model/lm-head.ts";
import { backward, enableGrad } from "../../src/torch/autograd.ts";
import {
  cast,
  clone,
  detach,
  gather,
  linear,
  logSoftmax,
  mul,
  randn,
  squeeze,
  unsqueeze,
} from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { gpuTest } from "../setup/gpu.ts";
import { checkAttentionGradients, checkGradients } from "./gradients-check.ts";
import { relativeError } from "./support.ts";

gpuTest("bfloat16, within its rounding", () => checkGradients("cuda", "bfloat16", 1e-2));
gpuTest("float32", () => checkGradients("cuda", "float32", 1e-5));
gpuTest("attention", () => checkAttentionGradients("cuda", "bfloat16", 1e-2));

gpuTest.each([
  [70, 1000, undefined],
  [70, 1000, 32],
  [33, 1001, undefined], // no whole vectors
])("log-probabilities, %s rows of %s, chunks of %s", (R, V, chunkRows) => {
  scope(() => {
    using generator = new Generator(6, "cuda");
    const draw = (shape: number[]) => cast(randn(shape, { device: "cuda", generator }), "bfloat16");
    const [hidden, head, before] = [draw([R, 64]), draw([V, 64]).setRequiresGrad(true), draw([V, 64])];
    const targets = () =>
      fromArray(
        Int32Array.from({ length: R }, (_, i) => (i * 997) % V),
        [R],
        { dtype: "int64", device: "cuda" },
      );
    const dLogprobs = randn([R], { device: "cuda", generator });
    head.setGrad(clone(before));
    using ours = new ChunkedLogprobs(mul(hidden, 0.3), head, targets(), {
      backward: true,
      ...(chunkRows === undefined ? {} : { chunkRows }),
    });
    const dHidden = ours.backward(dLogprobs);
    const leaf = detach(cast(mul(hidden, 0.3), "float64")).setRequiresGrad(true);
    const exactHead = detach(cast(head, "float64")).setRequiresGrad(true);
    exactHead.setGrad(cast(before, "float64"));
    const logp = enableGrad(() => logSoftmax(linear(leaf, exactHead), 1));
    const expected = enableGrad(() => squeeze(gather(logp, 1, unsqueeze(targets(), 1)), 1));
    backward([expected], [cast(dLogprobs, "float64")]);
    expect(relativeError(dHidden.toNumbers(), (leaf.grad as Tensor).toNumbers())).toBeLessThan(1e-2);
    expect(relativeError((head.grad as Tensor).toNumbers(), (exactHead.grad as Tensor).toNumbers())).toBeLessThan(1e-2);
  });
});
