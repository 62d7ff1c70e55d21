/** What a question costs, counted from shapes: for a model of GPUs that are not here. */

import { packGroups } from "../../src/model/packed.ts";
import type { Qwen2VLConfig } from "../../src/model/qwen2vl/config.ts";
import { parameterCount } from "../../src/trainer/plan.ts";
import { forwardFlops } from "./flops.ts";
import type { Work } from "./scaling-model.ts";
import { seedPrompts } from "./shapes.ts";

/** Read and written for each weight by an update with bfloat16 moments: the norm, then weight, low bits, moments and gradient. */
const OPTIMIZER_BYTES = 20;

/** Of a question with the seed's pictures, in bfloat16. */
export function workOf(
  shape: Qwen2VLConfig,
  { promptTokens, group, newTokens }: { promptTokens: number; group: number; newTokens: number },
): Work {
  const prompt = seedPrompts(1, Math.round(promptTokens))[0]!;
  const completions = Array.from({ length: group }, () => new Int32Array(newTokens));
  const flops = (some: Int32Array[]) => {
    const { text, vision, head } = forwardFlops(shape, packGroups([{ prompt, completions: some }]));
    return text + vision + head;
  };
  const { text } = shape;
  const matrix = text.vocabSize * text.hiddenSize; // embedding, head
  const parameters = parameterCount(shape);
  const layerless = parameterCount({ ...shape, text: { ...text, numLayers: 0 } });
  const read = parameters - layerless + matrix; // by a decode step: layers and head
  const tokenBytes = (2 * 2 * text.numLayers * text.numKvHeads * text.hiddenSize) / text.numHeads;
  return {
    prefillFlops: flops([]),
    forwardFlops: flops(completions),
    decodeBytes: (questions) => 2 * read + questions * (promptTokens + (group * newTokens) / 2) * tokenBytes,
    decodeSteps: newTokens - 1,
    weightBytes: 2 * parameters,
    optimizerBytes: OPTIMIZER_BYTES * parameters,
  };
}
