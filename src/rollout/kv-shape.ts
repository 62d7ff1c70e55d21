/** How large the key/value cache of a wave is; no tensor here, so that a dry run can ask without libtorch. */

import type { Device, DType } from "../torch/tensor.ts";

export interface KvShape {
  layers: number;
  questions: number; // Q
  group: number; // G
  kvHeads: number; // HK
  headDim: number; // D
  promptSlots: number; // P
  ownSlots: number; // N
}

/** Element type of the buffers: float32 on the CPU, where half precision is slow and rounds the scores, else the model's own. */
export function kvDType(device: Device, dtype: DType): DType {
  return device === "cpu" ? "float32" : dtype;
}

/** Bytes of all buffers. */
export function kvBytes(shape: KvShape, dtype: DType): number {
  const { layers, questions, group, kvHeads, headDim, promptSlots, ownSlots } = shape;
  const slots = questions * kvHeads * (promptSlots + group * ownSlots);
  return 2 * layers * slots * headDim * (dtype === "float32" ? 4 : 2);
}

/** Float32 rows of the vocabulary that drawing a token takes for every completion: logits, softmax, their sums and comparisons. */
const VOCABULARY_ROWS = 6;

/** Bytes of a wave: keys, values, and what drawing tokens takes. */
export function waveBytes(shape: KvShape, dtype: DType, vocabSize: number): number {
  return kvBytes(shape, dtype) + shape.questions * shape.group * vocabSize * 4 * VOCABULARY_ROWS;
}
