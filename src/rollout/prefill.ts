import { PrefillPlan } from "../model/attention.ts";
import { mediaOf, packGroups } from "../model/packed.ts";
import { cat, indexSelect, slice } from "../torch/ops.ts";
import { scope } from "../torch/scope.ts";
import { fromArray, type Tensor } from "../torch/tensor.ts";
import type { Prompt } from "../types.ts";
import type { KvCache } from "./kv-cache.ts";
import type { PhaseClock } from "./phase-clock.ts";
import { packPrompts } from "./prefill-packs.ts";
import type { SamplerModel } from "./sampler-model.ts";

/**
 * One pass over prompts, one behind the other, their pictures and videos in one batch. `store` receives every layer's keys and values of all their
 * tokens, [tokens, HK, D] each, which it must copy to hold. Returns the logits after each prompt's last token, [prompts, V].
 */
export function prefillTogether(
  model: SamplerModel,
  prompts: readonly Prompt[],
  store: (layer: number, k: Tensor, v: Tensor) => void,
  clock: PhaseClock,
): Tensor {
  return scope(() => {
    const pack = packGroups(prompts.map((prompt) => ({ prompt, completions: [] })));
    using plan = new PrefillPlan(pack.promptLengths, store);
    const media = mediaOf(prompts);
    const features = media.length > 0 ? clock.time("vision", () => model.visionFeatures(media)) : null;
    const hidden = model.forward(model.embed(pack.ids, features), pack.positions, plan);
    const rows = endsOf(pack.promptLengths).map((end) => end - 1);
    return model.logits(
      indexSelect(hidden, 0, fromArray(rows, [rows.length], { dtype: "int64", device: model.device })),
    );
  });
}

/** Fills the cache with the keys and values of every prompt: prompt i becomes question i. Returns their logits, [prompts, V]. */
export function prefillCache(
  model: SamplerModel,
  prompts: readonly Prompt[],
  cache: KvCache,
  options: { tokens: number; clock: PhaseClock },
): Tensor {
  return scope(() => {
    const lengths = prompts.map((prompt) => prompt.inputIds.length);
    const logits = packPrompts(lengths, options.tokens).map((run) => {
      const ends = endsOf(run.map((i) => lengths[i] as number));
      const store = (layer: number, k: Tensor, v: Tensor) => {
        for (const [i, question] of run.entries()) {
          const [start, end] = [ends[i - 1] ?? 0, ends[i] as number];
          cache.writePrompt(layer, question, slice(k, 0, start, end), slice(v, 0, start, end));
        }
      };
      const some = run.map((i) => prompts[i] as Prompt);
      return prefillTogether(model, some, store, options.clock);
    });
    return cat(logits);
  });
}

/** Where each of several runs of these lengths, one behind the other, ends. */
function endsOf(lengths: readonly number[]): number[] {
  let end = 0;
  return lengths.map((length) => {
    end += length;
    return end;
  });
}
