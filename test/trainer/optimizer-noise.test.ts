/**
 * 1,000 updates with the gradients of a regression that has what real ones have: heavy tails, rows that are rarely touched, inputs of very different
 * size, noise from small batches. float32 moments are held against AdamW in float64; those of fewer bits against the float32 run: how far the weights
 * are from it, in units of how far two float32 runs with other batches are from each other, and the loss they reach.
 */
import { expect, test } from "vitest";
import { configSchema } from "../../src/config/schema.ts";
import * as ops from "../../src/torch/ops.ts";
import { Generator } from "../../src/torch/random.ts";
import { scope } from "../../src/torch/scope.ts";
import { type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";
import { AdamW } from "../../src/trainer/optimizer.ts";

const STEPS = 1000;
const RATE = 3e-3;
const [IN, OUT, BATCH] = [96, 8, 16];
const defaults = configSchema.parse({ model: { path: "unused" } }).optimizer;

/** Inputs of very different size, the last half of them 0 in nine of ten rows. */
function inputs(rows: number, generator: Generator): Tensor {
  const sizes = fromArray(
    Float32Array.from({ length: IN }, (_, i) => 10 ** (((i * 7) % 5) / 2 - 1.5)),
    [IN],
  );
  const rare = fromArray(
    Float32Array.from({ length: IN }, (_, i) => (i < IN / 2 ? 1 : 0.1)),
    [IN],
  );
  const present = ops.cast(ops.lt(ops.rand([rows, IN], { generator }), rare), "float32");
  return ops.mul(ops.mul(ops.randn([rows, IN], { generator }), sizes), present);
}

const truth = (): Tensor => {
  using generator = new Generator(77);
  return ops.mul(ops.randn([IN, OUT], { generator }), 0.1);
};

/** Gradient of the mean squared error of one batch at `weight`, with heavy-tailed noise in the targets that grows and fades. */
function batchGradient(weight: Tensor, seed: number, step: number): Tensor {
  using generator = new Generator(seed * 100_000 + step);
  const x = inputs(BATCH, generator);
  const noise = ops.mul(ops.randn([BATCH, OUT], { generator }), ops.exp(ops.randn([BATCH, OUT], { generator })));
  const target = ops.add(ops.mm(x, truth()), ops.mul(noise, 0.03 * 10 ** Math.sin(step / 60)));
  return ops.div(ops.mm(ops.transpose(x, 0, 1), ops.sub(ops.mm(x, weight), target)), BATCH);
}

interface Outcome {
  weights: number[];
  loss: number; // on held-out inputs without noise
}

const rateAt = (step: number) => RATE * (1 - step / STEPS);

function lossOf(weight: Tensor): number {
  using generator = new Generator(99);
  const x = inputs(2000, generator);
  const miss = ops.sub(ops.mm(x, weight), ops.mm(x, truth()));
  return ops.norm(miss).item() ** 2 / 2000;
}

/** Trains with our optimizer. `dtype` is the weights'; their float32 masters are what is returned. */
function train(moments: "float32" | "bfloat16" | "int8", seed: number, dtype: DType = "float32"): Outcome {
  return scope(() => {
    const tensor = ops.zeros([IN, OUT], { dtype });
    const config = { ...defaults, moments, weightDecay: 0.01 };
    using optimizer = new AdamW([{ name: "weight", tensor, parts: [] }], config, 3);
    for (let step = 0; step < STEPS; step++) {
      scope(() => {
        ops.copy_(tensor.grad!, ops.cast(batchGradient(ops.cast(tensor, "float32"), seed, step), dtype));
        optimizer.step(rateAt(step), optimizer.gradNorm());
      });
    }
    return { weights: tensor.toNumbers(), loss: lossOf(ops.cast(tensor, "float32")) };
  });
}

const distance = (a: Outcome, b: Outcome) => Math.hypot(...a.weights.map((value, i) => value - b.weights[i]!));

test.each([
  "float32",
  "bfloat16",
] as const)("float32 moments, %s weights: AdamW in float64 with the same gradients", (dtype) => {
  scope(() => {
    const { beta1, beta2, eps, maxGradNorm } = defaults;
    const weightDecay = 0.01;
    const { fround } = Math; // torch too computes with betas in float32: 0.999 is 1.3e-8 off, which moves v by 1.3e-5
    const tensor = ops.zeros([IN, OUT], { dtype });
    using optimizer = new AdamW([{ name: "weight", tensor, parts: [] }], { ...defaults, weightDecay });
    const [p, m, v] = [0, 1, 2].map(() => ops.zeros([IN, OUT], { dtype: "float64" })) as [Tensor, Tensor, Tensor];
    for (let step = 0; step < STEPS; step++) {
      scope(() => {
        const rate = rateAt(step);
        const raw = ops.cast(batchGradient(ops.cast(tensor, "float32"), 1, step), dtype);
        ops.copy_(tensor.grad!, raw);
        optimizer.step(rate, optimizer.gradNorm());

        const exact = ops.cast(raw, "float64");
        const g = ops.mul(exact, Math.min(1, maxGradNorm / (ops.norm(exact).item() + 1e-6)));
        ops.copy_(p, ops.mul(p, 1 - rate * weightDecay));
        ops.copy_(m, ops.add(ops.mul(m, fround(beta1)), ops.mul(g, fround(1 - beta1))));
        ops.copy_(v, ops.add(ops.mul(v, fround(beta2)), ops.mul(ops.mul(g, g), fround(1 - beta2))));
        const denominator = ops.add(ops.mul(ops.sqrt(v), 1 / Math.sqrt(1 - beta2 ** (step + 1))), eps);
        ops.copy_(p, ops.sub(p, ops.mul(ops.div(m, denominator), rate / (1 - beta1 ** (step + 1)))));
      });
    }
    const low = optimizer.state().find(({ name }) => name.endsWith(".low"))?.tensor;
    const join = (rest: Tensor) =>
      ops.add(ops.mul(ops.cast(ops.viewDtype(tensor, "int16"), "int32"), 65_536), ops.cast(rest, "int32"));
    const master = low === undefined ? tensor : ops.viewDtype(join(low), "float32");
    const exact = p.toNumbers();
    const worst = Math.max(
      ...master.toNumbers().map((value, i) => Math.abs(value - exact[i]!) / Math.max(1, Math.abs(exact[i]!))),
    );
    expect(worst).toBeLessThan(1e-6);
  });
});

test("moments of fewer bits: as near to the float32 run as is said, and as good", () => {
  const seeds = [1, 2, 3, 4];
  const full = seeds.map((seed) => train("float32", seed));
  const apart = full.slice(1).map((other) => distance(full[0]!, other));
  const noise = apart.reduce((a, b) => a + b, 0) / apart.length;
  const mean = full.reduce((sum, { loss }) => sum + loss, 0) / seeds.length;
  const spread = Math.sqrt(full.reduce((sum, { loss }) => sum + (loss - mean) ** 2, 0) / (seeds.length - 1));
  for (const [moments, near] of [
    ["bfloat16", 0.03],
    ["int8", 0.2],
  ] as const) {
    const runs = seeds.map((seed) => train(moments, seed));
    const ratio = runs.reduce((sum, run, i) => sum + distance(run, full[i]!), 0) / seeds.length / noise;
    const loss = runs.reduce((sum, run) => sum + run.loss, 0) / seeds.length;
    expect(ratio).toBeLessThan(near); // measured 0.011 and 0.103
    expect(Math.abs(loss - mean)).toBeLessThan(spread / 4); // measured 0.01 and 0.09 of the spread over seeds
  }
});
