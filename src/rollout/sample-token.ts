/**
 * From logits to tokens: cuts off what may not be sampled, draws by inverting the cumulative distribution at a given uniform number,
 * and reports two log-probabilities. Two ways to the same tokens: `draw`, plain operators for given uniforms, and `advance`, one operator of
 * our own (native/sample_tokens.cc) that makes its uniforms itself and keeps everything on the device.
 * Letters: B rows, V entries of the vocabulary, S slots, N tokens a slot has room for.
 */

import { ConfigError } from "../errors.ts";
import { op } from "../torch/dispatch.ts";
import {
  add,
  argmax,
  cast,
  clamp,
  cumsum,
  div,
  exp,
  expand,
  gather,
  gt,
  log,
  logSoftmax,
  lt,
  maskedFill,
  mul,
  reshape,
  searchsorted,
  slice,
  softmax,
  sort,
  sub,
  sum,
  topk,
  unsqueeze,
  where,
  zerosLike,
} from "../torch/ops.ts";
import { keep, scope } from "../torch/scope.ts";
import { type Device, fromArray, type Tensor } from "../torch/tensor.ts";

const pad = op("aten::constant_pad_nd");
const entr = op("aten::special_entr"); // -p log p, 0 at 0
const logsumexp = op("aten::logsumexp");
const sampleTokens = op("grove::sample_tokens");

export interface SamplingOptions {
  /** Divides the logits; above 0, from 1e-30 to 1e30. */
  temperature: number;
  /** Keeps the k likeliest tokens (all that tie with the k-th); 0 keeps all. */
  topK: number;
  /** Keeps the likeliest tokens that together reach this probability, after temperature and topK; 1 keeps all. */
  topP: number;
  /** Takes the likeliest allowed token; the options above then count for nothing. */
  greedy?: boolean;
}

/** One token per row. */
export interface Draw {
  ids: Tensor; // [B] int64
  /** log p of the token under the distribution it was drawn from, nats; 0 when greedy. [B] float32 */
  sampledLogprobs: Tensor;
  /** log p under the softmax of the plain logits over the whole vocabulary, nats. [B] float32 */
  logprobs: Tensor;
  /** Of the softmax of the plain logits, nats. [B] float32 */
  entropies: Tensor;
}

/**
 * Completions in progress, one per slot, on the device. `advance` draws for position p = ownLength + 1 of a slot and then sets ownLength = p: a slot
 * that has drawn nothing has ownLength -1, and ropePositions of the token before its first. Everything but key and limit is written.
 */
export interface SlotState {
  key: Tensor; // [S, 2] int32, sampleKey() of the completion
  limit: Tensor; // [S] int32, most tokens of the completion, at most N
  tokens: Tensor; // [S] int64, the newest token: input of the next decode step
  ropePositions: Tensor; // [3, S] int64, of the newest token
  ownLength: Tensor; // [S] int32, drawn tokens before the newest
  done: Tensor; // [S] int32, 0 while the slot runs; others are left alone
  ids: Tensor; // [S, N] int32, by position, like the three below
  logprobs: Tensor; // [S, N] float32, as in Draw
  sampledLogprobs: Tensor; // [S, N] float32, as in Draw
  entropies: Tensor; // [S, N] float32, as in Draw
}

export class TokenSampler implements Disposable {
  private readonly options: SamplingOptions;
  /** Added to the logits: 0, or -infinity for ids that are never sampled. [V] float32. */
  private readonly penalty: Tensor;
  /** The same ids as a bit set, and those that end a completion. [ceil(V / 32)] int32. */
  private readonly forbidden: Tensor;
  private readonly stops: Tensor;

  /**
   * @param forbidden ids that are never sampled; must leave at least one
   * @param stops ids that end a completion
   * Throws ConfigError for options out of range.
   */
  constructor(
    vocabSize: number,
    forbidden: Iterable<number>,
    options: SamplingOptions,
    device: Device,
    stops: Iterable<number> = [],
  ) {
    const { temperature, topK, topP } = options;
    // Logits are divided in float32: beyond these the quotients are infinite or the divisor is, and nothing could be drawn.
    if (!(temperature >= 1e-30 && temperature <= 1e30)) {
      throw new ConfigError(
        `temperature must be above 0, got ${temperature}, and lie between 1e-30 and 1e30; use greedy for the likeliest token`,
      );
    }
    if (!(Number.isInteger(topK) && topK >= 0)) throw new ConfigError(`topK must be an integer from 0 on, got ${topK}`);
    if (!(topP >= 0 && topP <= 1)) throw new ConfigError(`topP must lie between 0 and 1, got ${topP}`);
    const penalty = new Float32Array(vocabSize);
    const inside = [...forbidden].filter((id) => id >= 0 && id < vocabSize);
    for (const id of inside) penalty[id] = Number.NEGATIVE_INFINITY;
    if (!penalty.includes(0)) throw new ConfigError("no token may be sampled: every id of the vocabulary is forbidden");
    this.options = options;
    this.penalty = keep(fromArray(penalty, [vocabSize], { device }));
    this.forbidden = keep(bitSet(inside, vocabSize, device));
    this.stops = keep(bitSet(stops, vocabSize, device));
  }

  /** logits [B, V] of any floating type; uniforms [B] float32 in [0, 1). Enqueues work only, never waits for the device. */
  draw(logits: Tensor, uniforms: Tensor): Draw {
    return scope(() => {
      const policy = logSoftmax(logits, -1, "float32");
      const allowed = add(logits, this.penalty); // float32, whatever the logits are
      const { ids, probability } = this.options.greedy ? takeLikeliest(allowed) : this.sample(allowed, uniforms);
      return {
        ids: reshape(ids, [-1]),
        sampledLogprobs: reshape(log(probability), [-1]),
        logprobs: reshape(gather(policy, 1, ids), [-1]),
        entropies: sum(entr(exp(policy)), 1),
      };
    });
  }

  /**
   * For every i draws a token from row source[i] of the logits for slot slot[i] (-1: none), writes down what is known about it and advances the slot.
   * logits [R, V] of any floating type, source and slot [n] int32; no running slot twice. Enqueues work only, never waits for the device.
   */
  advance(logits: Tensor, source: Tensor, slot: Tensor, state: SlotState): void {
    const { temperature, topK, topP, greedy = false } = this.options;
    scope(() => {
      const taken = logits.dtype === "float32" || logits.dtype === "bfloat16" ? logits : cast(logits, "float32");
      const { key, limit, tokens, ropePositions, ownLength, done, ids, logprobs, sampledLogprobs, entropies } = state;
      const written = [tokens, ropePositions, ownLength, done, ids, logprobs, sampledLogprobs, entropies];
      const fixed = [taken, source, slot, this.forbidden, this.stops, key, limit];
      sampleTokens(...fixed, ...written, temperature, topK, topP, greedy);
    });
  }

  [Symbol.dispose](): void {
    for (const tensor of [this.penalty, this.forbidden, this.stops]) tensor.free();
  }

  private sample(allowed: Tensor, uniforms: Tensor): { ids: Tensor; probability: Tensor } {
    const { temperature, topK, topP } = this.options;
    const tempered = temperature === 1 ? allowed : div(allowed, temperature);
    return invertCdf(softmax(filterLogits(tempered, topK, topP), -1), uniforms);
  }
}

/** Bit id % 32 of word id / 32 is set for the ids given. [ceil(size / 32)] int32. */
function bitSet(ids: Iterable<number>, size: number, device: Device): Tensor {
  const words = new Int32Array(Math.ceil(size / 32));
  for (const id of ids) words[id >> 5]! |= 1 << (id & 31);
  return fromArray(words, [words.length], { dtype: "int32", device });
}

/**
 * Sets logits outside the top k and outside the nucleus of mass topP to -infinity. Both cut at a value, so tokens that tie with the
 * last one kept are kept too and the result does not depend on how a sort orders them. [B, V] float32 in and out.
 */
export function filterLogits(logits: Tensor, topK: number, topP: number): Tensor {
  const vocabSize = logits.size(1);
  const cutsK = topK > 0 && topK < vocabSize;
  if (!cutsK && topP >= 1) return logits;
  return scope(() => {
    // With topK the nucleus lies inside the k largest: no need to sort the vocabulary.
    const [ranked] = cutsK ? topk(logits, topK) : sort(logits, -1, true);
    const kept = cutsK ? maskBelow(logits, slice(ranked, 1, topK - 1, topK)) : logits;
    if (topP >= 1) return kept;
    // A token stays if the tokens before it hold less than topP; the first always stays. What ties with the k-th counts in the total.
    const probabilities = exp(sub(ranked, logsumexp(kept, [1], true)));
    const before = sub(cumsum(probabilities, 1), probabilities);
    const count = sum(cast(lt(before, topP), "int64"), 1, true);
    const last = clamp(sub(count, 1), 0, null);
    return maskBelow(kept, gather(ranked, 1, last));
  });
}

/** -infinity where x is below its row's threshold. x [B, V], threshold [B, 1]. */
function maskBelow(x: Tensor, threshold: Tensor): Tensor {
  return maskedFill(x, lt(x, threshold), Number.NEGATIVE_INFINITY);
}

/** Vocabularies above this size are searched in two levels: a cumulative sum over few long rows keeps most of a GPU idle. */
const ONE_LEVEL = 4096;
const BLOCK = 256;
const BELOW_ONE = 1 - 2 ** -24;

/**
 * The first id whose cumulative probability exceeds u times the total: id i is drawn for a share p_i of all u, and an id of probability
 * 0 never is. Where rounding would still land on such an id, or behind the last one, the likeliest id is taken.
 * probabilities [B, V] and uniforms [B], float32; returns [B, 1] each.
 */
function invertCdf(probabilities: Tensor, uniforms: Tensor): { ids: Tensor; probability: Tensor } {
  const vocabSize = probabilities.size(1);
  const u = unsqueeze(uniforms, 1);
  const found = vocabSize <= ONE_LEVEL ? search(probabilities, u).index : searchBlocks(probabilities, u);
  const inside = clamp(found, null, vocabSize - 1);
  const ids = where(gt(gather(probabilities, 1, inside), 0), inside, argmax(probabilities, 1, true));
  return { ids, probability: gather(probabilities, 1, ids) };
}

/**
 * The first entry of each row whose cumulative weight exceeds u times the row's total, at most the last one. weights [B, n], u [B, 1].
 * `rest` is how far into that entry the point lies, 0 to 1 but for rounding.
 */
function search(weights: Tensor, u: Tensor): { index: Tensor; rest: Tensor } {
  const last = weights.size(1) - 1;
  const cumulative = cumsum(weights, 1);
  const target = mul(u, slice(cumulative, 1, last, last + 1));
  const index = clamp(searchsorted(cumulative, target, true), null, last);
  const weight = gather(weights, 1, index);
  return { index, rest: div(sub(target, sub(gather(cumulative, 1, index), weight)), weight) };
}

/** search() over the sums of blocks, then inside the block found. */
function searchBlocks(probabilities: Tensor, u: Tensor): Tensor {
  const [rows, vocabSize] = probabilities.shape as [number, number];
  const count = Math.ceil(vocabSize / BLOCK);
  const missing = count * BLOCK - vocabSize;
  const blocks = reshape(missing > 0 ? pad(probabilities, [0, missing]) : probabilities, [rows, count, BLOCK]);
  const { index, rest } = search(sum(blocks, 2), u);
  const block = gather(blocks, 1, expand(unsqueeze(index, 2), [rows, 1, BLOCK]));
  const inside = search(reshape(block, [rows, BLOCK]), clamp(rest, 0, BELOW_ONE));
  return add(mul(index, BLOCK), inside.index);
}

/** All of the probability on the largest logit; the lowest id among equals. */
function takeLikeliest(logits: Tensor): { ids: Tensor; probability: Tensor } {
  const ids = argmax(logits, 1, true);
  return { ids, probability: add(zerosLike(ids, "float32"), 1) };
}
