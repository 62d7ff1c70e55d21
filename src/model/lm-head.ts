/**
 * Log-probabilities of given tokens, the head applied in chunks of rows so that [tokens, vocab] never exists as a whole.
 *
 * Shapes: R rows to predict, X hidden size, V vocabulary, C rows of one chunk.
 */

import { ShapeError } from "../errors.ts";
import { noGrad } from "../torch/autograd.ts";
import { op, opN } from "../torch/dispatch.ts";
import { itemSize } from "../torch/dtype.ts";
import {
  add_,
  cast,
  cat,
  gather,
  linear,
  matmul,
  slice,
  squeeze,
  sub,
  transpose,
  unsqueeze,
  zerosLike,
} from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import type { Tensor } from "../torch/tensor.ts";
import { entropyGradient } from "./entropy-gradient.ts";

/** Logits of one chunk, in bytes: large products pay for what they take. */
const CHUNK_BYTES = 2 ** 30;
/** Up to this many bytes in all, logits are kept for the backward (which turns them into their gradient) instead of being computed again. */
const KEEP_BYTES = 2 ** 31;

const tokenLogprobs = opN("grove::token_logprobs");
const addmm_ = op("aten::addmm_");
const logprobBackward = op("grove::logprob_backward");

/**
 * Forward on construction; backward once at most. Softmax in float32 (float64 for a float64 model), exact: no sampling, no top-k.
 * Owns its tensors; does not own `hidden`, which must live until dispose.
 */
export class ChunkedLogprobs implements Disposable {
  /** log p(target) per row, nats, float32 (float64) [R]. */
  readonly logprobs: Tensor;
  /** Entropy of the whole distribution per row, nats, float32 (float64) [R]. */
  readonly entropy: Tensor;
  readonly #hidden_RX: Tensor;
  readonly #head_VX: Tensor;
  readonly #targets_R: Tensor;
  readonly #chunkRows: number;
  #kept: Tensor[] | null; // logits [C, V] of every chunk

  /** @param targets int64 [R] on the device of `hidden`; taken over. */
  constructor(hidden: Tensor, head: Tensor, targets: Tensor, options: { backward: boolean; chunkRows?: number }) {
    if (hidden.ndim !== 2 || hidden.size(1) !== head.size(1))
      throw new ShapeError("logprobs", `hidden [rows, ${head.size(1)}]`, hidden.shape);
    this.#hidden_RX = hidden;
    this.#head_VX = head;
    this.#targets_R = keep(targets);
    const [rows, vocab] = [hidden.size(0), head.size(0)];
    const rowBytes = vocab * itemSize(head.dtype);
    this.#chunkRows = options.chunkRows ?? Math.max(1, Math.floor(CHUNK_BYTES / rowBytes));
    this.#kept = options.backward && rows * rowBytes <= KEEP_BYTES ? [] : null;
    try {
      const [logprobs, entropy] = this.#score();
      this.logprobs = keep(logprobs);
      this.entropy = keep(entropy);
    } catch (error) {
      for (const tensor of [this.#targets_R, ...(this.#kept ?? [])]) tensor.free(); // out of memory half-way
      throw error;
    }
  }

  /**
   * Adds d/d(head) to the gradient of a head that wants one and returns d/d(hidden) [R, X], for dLogprobs float32 [R] and, where the entropy counts too, dEntropy [R].
   * With p the softmax, d logits = (onehot(target) - p) * dLogprob - p (log p + entropy) * dEntropy. The second term takes another chunk's memory.
   */
  backward(dLogprobs: Tensor, dEntropy: Tensor | null = null): Tensor {
    return scope(() =>
      noGrad(() => {
        const headGrad = this.#head_VX.requiresGrad ? gradOf(this.#head_VX) : null;
        const parts = this.#chunks().map(([begin, end], i) =>
          scope(() => {
            const logits_CV = this.#kept?.[i] ?? this.#logits(begin, end);
            const column = (x_R: Tensor) => unsqueeze(slice(x_R, 0, begin, end), 1);
            const [target_C1, logprob_C1] = [column(this.#targets_R), column(this.logprobs)];
            const logSum_C1 = sub(gather(logits_CV, 1, target_C1), logprob_C1); // of exp(logits): the forward's logprob has it
            const d_C = cast(slice(dLogprobs, 0, begin, end), logSum_C1.dtype); // float32 or float64
            // before the line below, which may write the gradient where the logits are
            const ofEntropy =
              dEntropy &&
              entropyGradient(logits_CV, logSum_C1, column(this.entropy), cast(column(dEntropy), logSum_C1.dtype));
            const d = logprobBackward(logits_CV, slice(this.#targets_R, 0, begin, end), squeeze(logSum_C1, 1), d_C);
            if (ofEntropy !== null) add_(d, ofEntropy);
            if (headGrad !== null) addmm_(headGrad, transpose(d, 0, 1), slice(this.#hidden_RX, 0, begin, end));
            return matmul(d, this.#head_VX);
          }),
        );
        return parts.length === 1 ? (parts[0] as Tensor) : cat(parts, 0);
      }),
    );
  }

  [Symbol.dispose](): void {
    for (const tensor of [this.logprobs, this.entropy, this.#targets_R, ...(this.#kept ?? [])]) tensor.free();
    this.#kept = null;
  }

  #score(): readonly [Tensor, Tensor] {
    return scope(() =>
      noGrad(() => {
        const parts = this.#chunks().map(([begin, end]) =>
          scope(() => {
            const logits_CV = this.#logits(begin, end);
            this.#kept?.push(keep(logits_CV));
            return tokenLogprobs(logits_CV, slice(this.#targets_R, 0, begin, end)) as [Tensor, Tensor];
          }),
        );
        const joined = (which: 0 | 1) =>
          cat(
            parts.map((part) => part[which]),
            0,
          );
        return [joined(0), joined(1)] as const;
      }),
    );
  }

  #logits(begin: number, end: number): Tensor {
    return linear(slice(this.#hidden_RX, 0, begin, end), this.#head_VX);
  }

  #chunks(): [begin: number, end: number][] {
    const rows = this.#hidden_RX.size(0);
    const chunks: [number, number][] = [];
    for (let begin = 0; begin === 0 || begin < rows; begin += this.#chunkRows)
      chunks.push([begin, Math.min(rows, begin + this.#chunkRows)]);
    return chunks;
  }
}

/** The tensor a parameter's gradient accumulates in; made, as zeros, where there is none yet. Belongs to the current scope. */
function gradOf(parameter: Tensor): Tensor {
  const present = parameter.grad;
  if (present !== null) return present;
  parameter.setGrad(zerosLike(parameter));
  return parameter.grad as Tensor;
}
