/**
 * What a step would take on GPUs that are not here, from parts that were measured here: a part keeps its share of the rate that bounds it, and the rate is
 * the other card's. Every number in ASSUMED is an assumption, not a measurement.
 */

/** Assumed: of cards and links that were not measured. */
export const ASSUMED = {
  /** bfloat16 product of large matrices on an A100-40GB, FLOP/s: 85 % of 312e12. */
  a100Flops: 265e12,
  /** A copy on an A100-40GB, bytes read and written a second: 87 % of 1,555e9. */
  a100BytesPerS: 1350e9,
  /** What a GPU of a node with NVLink 3 (300e9 each way) hands on in a ring of NCCL's, bytes a second. */
  nvlinkBytesPerS: 230e9,
  /** What a node with eight HDR InfiniBand ports (200e9 in all each way) hands on, bytes a second. */
  nodeBytesPerS: 160e9,
} as const;

/** Of one question's forward pass, in a run: FLOPs of products and attention. */
export interface Work {
  /** Vision tower and language model, the head not counted: what a prefill does once a question. */
  prefillFlops: number;
  /** Of a whole pass: prompt and completions. */
  forwardFlops: number;
  /** Bytes that a decode step reads: all weights, and keys and values by question. */
  decodeBytes: (questions: number) => number;
  decodeSteps: number;
  /** Bytes of the weights, and of the optimizer's whole update. */
  weightBytes: number;
  optimizerBytes: number;
}

/** Seconds of a step on one GPU with `questions` questions, and the rates of that GPU. */
export interface Measured {
  questions: number;
  prefillS: number;
  decodeS: number;
  referenceS: number;
  /** Forward and backward, without the optimizer's share. */
  updateS: number;
  /** Whatever else a step takes. */
  otherS: number;
  flops: number; // of a large product, a second
  bytesPerS: number; // of a copy
}

export interface Cluster {
  nodes: number;
  gpusPerNode: number;
  questions: number; // of each GPU in a step
  flops: number;
  bytesPerS: number;
  nvlinkBytesPerS: number;
  nodeBytesPerS: number;
  /** Whether layers are computed again in the backward. */
  recompute: boolean;
  shardReference: boolean;
}

export interface Modelled {
  gpus: number;
  computeS: number;
  communicationS: number;
  /** Where communication lasts beside the computation of reference and update, as far as that is long enough; and where none does. */
  stepS: { hidden: number; exposed: number };
  questionsPerS: { hidden: number; exposed: number };
}

/** One question at a time goes through a pass, so gradients travel once a question where they are sharded. */
export function model(work: Work, measured: Measured, cluster: Cluster): Modelled {
  const { nodes, gpusPerNode, questions } = cluster;
  const gpus = nodes * gpusPerNode;
  // What part of the measured card's rates its parts have reached.
  const perFlop = (seconds: number, flops: number) => (seconds * measured.flops) / (measured.questions * flops);
  const prefill = perFlop(measured.prefillS, work.prefillFlops);
  const reference = perFlop(measured.referenceS, work.forwardFlops);
  const update = perFlop(measured.updateS, 3 * work.forwardFlops);
  const decode = (measured.decodeS * measured.bytesPerS) / (work.decodeSteps * work.decodeBytes(measured.questions));
  const computing = (factor: number, flops: number) => (factor * questions * flops) / cluster.flops;
  const referenceS = computing(reference, work.forwardFlops);
  const updateS = computing(update, (cluster.recompute ? 4 : 3) * work.forwardFlops);
  const computeS =
    computing(prefill, work.prefillFlops) +
    (decode * work.decodeSteps * work.decodeBytes(questions)) / cluster.bytesPerS +
    referenceS +
    updateS +
    work.optimizerBytes / gpus / cluster.bytesPerS +
    (measured.otherS * questions) / measured.questions;
  const once = ringSeconds(work.weightBytes, cluster);
  // Gradients of each question's pass, weights once, the reference for each question's pass.
  const beside = [questions * once, cluster.shardReference ? questions * once : 0];
  const communicationS = beside.reduce((sum, seconds) => sum + seconds, once);
  const left = Math.max(0, (beside[0] as number) - updateS) + Math.max(0, (beside[1] as number) - referenceS) + once;
  const stepS = { hidden: computeS + left, exposed: computeS + communicationS };
  const rate = (seconds: number) => (gpus * questions) / seconds;
  return {
    ...{ gpus, computeS, communicationS, stepS },
    questionsPerS: { hidden: rate(stepS.hidden), exposed: rate(stepS.exposed) },
  };
}

/** A reduce-scatter or an all-gather of so many bytes in a ring: each GPU hands on all but its own part; a ring of nodes is as fast as its slower link. */
export function ringSeconds(
  bytes: number,
  {
    nodes,
    gpusPerNode,
    nvlinkBytesPerS,
    nodeBytesPerS,
  }: Pick<Cluster, "nodes" | "gpusPerNode" | "nvlinkBytesPerS" | "nodeBytesPerS">,
): number {
  const gpus = nodes * gpusPerNode;
  const rate = nodes > 1 ? Math.min(nvlinkBytesPerS, nodeBytesPerS) : nvlinkBytesPerS;
  return (bytes * (gpus - 1)) / gpus / rate;
}
