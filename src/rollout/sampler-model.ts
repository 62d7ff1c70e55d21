/** What sampling needs of a model and a tokenizer, and nothing else. */

import type { Qwen2VL } from "../model/qwen2vl/model.ts";

export type SamplerModel = Pick<
  Qwen2VL,
  "config" | "device" | "dtype" | "headDim" | "embed" | "forward" | "logits" | "visionFeatures"
>;

export interface TextDecoder {
  vocabSize: number;
  eosTokenIds: readonly number[];
  encode(text: string): Int32Array;
  decode(ids: Int32Array, options?: { skipSpecialTokens?: boolean }): string;
}
