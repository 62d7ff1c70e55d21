/** Grove's side, compared with what the Python side wrote: every stage of every input of one shape, as errors. */

import { join } from "node:path";
import type { Processor } from "../../src/data/processor.ts";
import { PrefillPlan } from "../../src/model/attention.ts";
import { mediaOf, packGroups } from "../../src/model/packed.ts";
import { Qwen2VL } from "../../src/model/qwen2vl/model.ts";
import { SafetensorsFile } from "../../src/model/safetensors.ts";
import { originalName } from "../../src/model/weights.ts";
import { forbiddenIds, Sampler } from "../../src/rollout/sampler.ts";
import { cast, norm, reshape, slice, sub, to } from "../../src/torch/ops.ts";
import { scope } from "../../src/torch/scope.ts";
import { type Device, type DType, fromArray, type Tensor } from "../../src/torch/tensor.ts";
import type { Prepared } from "./prepare.ts";

/** Squared difference and squared size, so that errors of parts add up: relative error = sqrt(difference / size). */
export interface Squares {
  difference: number;
  size: number;
}

/** Of one input, or of the batch of all. `against` names what it is compared with: "truth", or "half" for transformers in bfloat16. */
export interface ModelErrors {
  features: Squares | null;
  logits: Squares;
  logprobs: Squares;
  gradients: GradientErrors | null;
}

export interface GradientErrors {
  /** Largest relative error of a parameter. */
  worst: number;
  worstName: string;
  /** Geometric mean of the parameters' relative errors: no few large gradients decide it. */
  typical: number;
}

export interface ShapeRun {
  errors: ModelErrors[]; // one an input
  /** Gradients of all inputs in one pack against the sum of transformers' gradients. */
  batchGradients: GradientErrors;
  /** transformers in bfloat16 against the same truth. */
  theirs: ModelErrors[] | null;
  theirBatchGradients: GradientErrors | null;
  greedy: number[][] | null;
}

const GREEDY_TOKENS = 64;

export function forbiddenOf(config: Qwen2VL["config"], processor: Processor): number[] {
  return forbiddenIds(config, processor.tokenizer);
}

/**
 * Loads what Python saved, compares all stages, writes the export.
 * @param options.gradientsPerInput false: only those of the whole batch (they take much memory in a larger model)
 */
export function runShape(
  folder: string,
  processor: Processor,
  prepared: readonly Prepared[],
  options: { device: Device; dtype: DType; gradientsPerInput: boolean },
): ShapeRun {
  using theirs = new SafetensorsFile(join(folder, "theirs.safetensors"));
  using model = Qwen2VL.load(join(folder, "model"), options);
  model.save(join(folder, "export"), { copyFrom: join(folder, "model"), maxShardBytes: 300_000 });
  const half = options.dtype === "bfloat16";
  const groups = prepared.map(({ prompt, completions }) => ({ prompt, completions }));

  const errors = scope(() => prepared.map((one, i) => forwardErrors(model, one, i, theirs)));
  // every input in one pack: what a training step does with a batch of mixed questions
  const together = scope(() => {
    using pass = model.pass(packGroups(groups), { grad: true, recompute: "none" });
    let row = 0;
    prepared.forEach(({ completions }, i) => {
      const own: Squares = { difference: 0, size: 0 };
      completions.forEach((ids, g) => {
        addTo(own, squares(slice(pass.logprobs, 0, row, row + ids.length), theirs.tensor(`truth.${i}.logprobs${g}`)));
        row += ids.length;
      });
      (errors[i] as ModelErrors).logprobs = own;
    });
    pass.backward(fromArray(lossWeights(prepared), [row], { device: model.device }));
    return gradientErrors(model, theirs, "truth.all.gradient.");
  });
  if (options.gradientsPerInput) {
    prepared.forEach((one, i) => {
      (errors[i] as ModelErrors).gradients = scope(() => {
        using pass = model.pass(packGroups([{ prompt: one.prompt, completions: one.completions }]), { grad: true });
        const weights = lossWeights([one]);
        pass.backward(fromArray(weights, [weights.length], { device: model.device }));
        return gradientErrors(model, theirs, `truth.${i}.gradient.`);
      });
    });
  }
  return {
    errors,
    batchGradients: together,
    theirs: half ? prepared.map((one, i) => halfErrors(one, i, theirs, options.gradientsPerInput)) : null,
    theirBatchGradients: half ? halfGradients(theirs, "all") : null,
    greedy: half ? null : greedyTokens(model, processor, prepared),
  };
}

function forwardErrors(model: Qwen2VL, one: Prepared, i: number, theirs: SafetensorsFile): ModelErrors {
  const { prompt, completions } = one;
  const media = mediaOf([prompt]);
  const features = media.length === 0 ? null : model.visionFeatures(media);
  const logits: Squares = { difference: 0, size: 0 };
  completions.forEach((completion, g) => {
    scope(() => {
      const row = packGroups([{ prompt, completions: [completion] }]);
      using plan = new PrefillPlan([row.ids.length]); // one row of text, as transformers sees it
      const found = model.logits(model.forward(model.embed(row.ids, features), row.positions, plan));
      addTo(logits, squares(found, theirs.tensor(`truth.${i}.logits${g}`)));
    });
  });
  return {
    features: features === null ? null : squares(features, theirs.tensor(`truth.${i}.features`)),
    logits,
    logprobs: { difference: 0, size: 0 },
    gradients: null,
  };
}

function lossWeights(prepared: readonly Prepared[]): Float32Array {
  return Float32Array.from(prepared.flatMap(({ weights }) => weights.flatMap((values) => Array.from(values))));
}

/** Compares the gradients that are there, part by part under Hugging Face's names, and clears them. */
function gradientErrors(model: Qwen2VL, theirs: SafetensorsFile, prefix: string): GradientErrors {
  const names = new Map(
    theirs
      .names()
      .filter((name) => name.startsWith(prefix))
      .map((name) => [originalName(name.slice(prefix.length)), name]),
  );
  const relative = new Map<string, number>();
  for (const { tensor, parts } of model.parameters) {
    for (const { name, rows } of parts) {
      const stored = names.get(name);
      if (stored === undefined) throw new Error(`the Python side has no gradient of ${name}`);
      names.delete(name);
      scope(() => {
        const gradient = tensor.grad;
        const expected = theirs.tensor(stored);
        const found = gradient === null ? null : slice(gradient, 0, ...rows);
        // a tower that no input used has no gradient on this side, and zeros on the other
        relative.set(name, found === null ? squares(expected, null).size : relativeError(squares(found, expected)));
      });
    }
    tensor.setGrad(null);
  }
  if (names.size > 0) throw new Error(`Grove has no gradient of ${[...names.keys()].join(", ")}`);
  return summary(relative);
}

function summary(relative: ReadonlyMap<string, number>): GradientErrors {
  let [worst, worstName, logSum, count] = [0, "", 0, 0];
  for (const [name, error] of relative) {
    if (!(error <= worst)) [worst, worstName] = [error, name]; // NaN is the worst
    if (error === 0) continue;
    logSum += Math.log(error);
    count++;
  }
  return { worst, worstName, typical: Math.exp(logSum / Math.max(1, count)) };
}

/** transformers in bfloat16 against its own float32. */
function halfErrors(one: Prepared, i: number, theirs: SafetensorsFile, gradients: boolean): ModelErrors {
  return scope(() => {
    const pooled = (stage: string) =>
      one.completions.reduce<Squares>(
        (sum, _, g) =>
          addTo(sum, squares(theirs.tensor(`half.${i}.${stage}${g}`), theirs.tensor(`truth.${i}.${stage}${g}`))),
        { difference: 0, size: 0 },
      );
    const hasMedia = mediaOf([one.prompt]).length > 0;
    return {
      features: hasMedia ? squares(theirs.tensor(`half.${i}.features`), theirs.tensor(`truth.${i}.features`)) : null,
      logits: pooled("logits"),
      logprobs: pooled("logprobs"),
      gradients: gradients ? halfGradients(theirs, i) : null,
    };
  });
}

function halfGradients(theirs: SafetensorsFile, which: number | "all"): GradientErrors {
  const prefix = `half.${which}.gradient.`;
  const relative = new Map<string, number>();
  for (const name of theirs.names().filter((other) => other.startsWith(prefix))) {
    scope(() => {
      const found = squares(theirs.tensor(name), theirs.tensor(name.replace(/^half/, "truth")));
      relative.set(name.slice(prefix.length), found.size === 0 ? 0 : relativeError(found));
    });
  }
  return summary(relative);
}

/** All prompts in one call: prefill and decode of a mixed batch. */
function greedyTokens(model: Qwen2VL, processor: Processor, prepared: readonly Prepared[]): number[][] {
  using sampler = new Sampler({ model, tokenizer: processor.tokenizer, config: { maxConcurrent: 64 } });
  const groups = sampler.rolloutGroups(
    prepared.map(({ prompt }) => prompt),
    { groupSize: 1, maxNewTokens: GREEDY_TOKENS, seed: 0, step: 0, temperature: 1, topK: 0, topP: 1, greedy: true },
  );
  return groups.map(({ completions }) => Array.from(completions[0]?.ids ?? []));
}

/** Of `found` against `expected`, in float64 on the host; null stands for zeros. */
function squares(found: Tensor, expected: Tensor | null): Squares {
  return scope(() => {
    const wide = (x: Tensor) => cast(to(x, { device: "cpu" }), "float64");
    const a = wide(found);
    if (expected === null) return { difference: norm(a).item() ** 2, size: norm(a).item() ** 2 };
    const b = reshape(wide(expected), a.shape);
    return { difference: norm(sub(a, b)).item() ** 2, size: norm(b).item() ** 2 };
  });
}

export function addTo(sum: Squares, other: Squares): Squares {
  sum.difference += other.difference;
  sum.size += other.size;
  return sum;
}

export function relativeError({ difference, size }: Squares): number {
  return difference === 0 ? 0 : Math.sqrt(difference / size); // both zero: a part that no input used
}
