import { PrefillPlan } from "../model/attention.ts";
import { mediaOf, packGroups } from "../model/packed.ts";
import { cat, indexSelect, slice } from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import { fromArray, type Tensor } from "../torch/tensor.ts";
import type { Prompt } from "../types.ts";
import type { KvStore } from "./kv-cache.ts";
import type { SamplerModel } from "./sampler-model.ts";
import { packPrompts } from "./scheduler.ts";

/**
 * Runs every prompt through the model once, several in one pass, and fills the cache with its keys and values. Prompt i becomes
 * question i of the cache. Returns the logits after each prompt's last token, [prompts, V].
 */
export function prefill(model: SamplerModel, prompts: readonly Prompt[], cache: KvStore, tokenBudget: number): Tensor {
  return scope(() => {
    const lengths = prompts.map((prompt) => prompt.inputIds.length);
    const runs = packPrompts(lengths, tokenBudget);
    return cat(
      runs.map((run) =>
        prefillRun(
          model,
          run.map((i) => prompts[i] as Prompt),
          cache,
          run[0] as number,
        ),
      ),
    );
  });
}

/** One pass over prompts that are questions `firstQuestion`, `firstQuestion + 1`, ... of the cache. */
function prefillRun(model: SamplerModel, prompts: readonly Prompt[], cache: KvStore, firstQuestion: number): Tensor {
  return scope(() => {
    const pack = packGroups(prompts.map((prompt) => ({ prompt, completions: [] })));
    const ends: number[] = [];
    for (const length of pack.promptLengths) ends.push((ends.at(-1) ?? 0) + length);
    using plan = new PrefillPlan(pack.promptLengths, (layer, k, v) => {
      for (const [i, end] of ends.entries()) {
        const start = end - (pack.promptLengths[i] as number);
        cache.writePrompt(layer, firstQuestion + i, slice(k, 0, start, end), slice(v, 0, start, end));
      }
    });
    const media = mediaOf(prompts);
    const features = media.length > 0 ? model.visionFeatures(media) : null;
    const hidden = model.forward(model.embed(pack.ids, features), pack.positions, plan);
    const rows = ends.map((end) => end - 1);
    return model.logits(
      indexSelect(hidden, 0, fromArray(rows, [rows.length], { dtype: "int64", device: model.device })),
    );
  });
}
