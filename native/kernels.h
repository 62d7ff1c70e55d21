// The C ABI of libgrove_kernels.so: raw device pointers and a stream, no torch. Each launcher returns 0, or a cudaError_t.
#pragma once

#include <stdint.h>

// One parameter of an optimizer: `numel` weights, float32 or bfloat16, whose gradients, moments and low bits begin at element `start` of flat
// buffers, a multiple of 256. See native/adamw.cc.
typedef struct {
  void* weight;
  int64_t start, numel;
  uint32_t key0, key1;
  int32_t decays;
} GroveSegment;
// As Step in native/adamw_element.h.
typedef struct {
  float beta1, gain1, beta2, gain2, eps, stepSize, rsqrtCorrection2, decay, maxNorm;
  uint32_t update;
} GroveAdamwStep;
enum GroveMoments { kGroveFloat32 = 0, kGroveBfloat16 = 1, kGroveCodes8 = 2 };
// Updates elements [begin, end) of the flat buffers, begin a multiple of 256; m, v and their scales (kGroveCodes8 only) begin there, grad and low at
// element 0. segments: `count` of them in device memory, ascending, the first beginning at `begin` or before. low NULL: weights and grad float32, else
// bfloat16. Buffers aligned to 16 bytes and as long as the last segment's 256-blocks; weights need no alignment. norm: one float32; not finite: nothing
// is written.
typedef int (*GroveAdamwLauncher)(const GroveSegment* segments, int count, const void* grad, int16_t* low, int moments, void* m, void* v,
                                  float* mScale, float* vScale, const float* norm, int64_t begin, int64_t end, const GroveAdamwStep* step,
                                  void* stream);

// x += share (y - x), bfloat16 [count], elements `begin` on of a parameter; see native/moving_average.cc.
typedef struct {
  void* x;
  const void* y;
  int64_t begin, count;
  float share;
  uint32_t key0, key1, step;
} GroveMovingAverage;
typedef int (*GroveMovingAverageLauncher)(const GroveMovingAverage* arguments, void* stream);

// norm = Euclidean norm of grad [n], float32 or bfloat16, aligned to 16 bytes. partial: double [what GroveGradNormScratch says], scratch. The same bits
// in every run and on every device.
typedef int (*GroveGradNormLauncher)(const void* grad, int isBfloat16, int64_t n, double* partial, float* norm, void* stream);
typedef int64_t (*GroveGradNormScratch)(int64_t n);

// The most chunks of a prompt's keys (src/model/prompt-chunks.ts has the same number).
#define kGroveMaxPromptChunks 16

// bfloat16 throughout, contiguous; shapes and meaning in native/decode_attention.cc. partial: bfloat16 [(chunks + 1) * groups * groupSize *
// heads, headDim], partialLse: float32 without the last dimension, both scratch; slots may be null. headDim 64 or 128, heads / kvHeads at most 16.
typedef int (*GroveDecodeAttentionLauncher)(const void* qkv, const void* cos, const void* sin, void* ownK, void* ownV, const void* promptK,
                                            const void* promptV, const int* rows, const int* promptStart, const int* promptLength,
                                            const int* chunkKeys, const int* ownLength, const int* slots, void* out, void* partial, float* partialLse,
                                            int groups, int groupSize, int heads, int kvHeads, int headDim, int ownSlots,
                                            int chunks, float scale, void* stream);

// 1 where the current device can run it with this head size, else 0.
typedef int (*GroveDecodeAttentionFits)(int headDim);

// Parts of one softmax over disjoint keys, added up: outs[p] bfloat16 [rows, heads, headDim] and lses[p] float32 [heads, rows], the chunks of
// the prompts (parts - 1 of them), then the rows' own tokens; at most kGroveMaxPromptChunks + 1. Row r belongs to the group g with
// cuGroup[g] <= r < cuGroup[g + 1], cuGroup int32 [groups + 1]; its chunk p is absent where chunkLengths[p * groups + g], int32, is 0. Writes out and
// lse, laid out like a part. headDim a multiple of 8. See native/group_attention.cc.
typedef int (*GroveMergePartsLauncher)(const void* const* outs, const float* const* lses, int parts, const int* cuGroup,
                                       const int* chunkLengths, int groups, void* out, float* lse, int rows, int heads, int headDim,
                                       void* stream);

// The attention of packed groups, forward: q [rows, heads, 128], k and v [rows, kvHeads, 128], bfloat16, aligned to 16 bytes, stride.. values from row
// to row, a multiple of 8; the tables as in native/group_attention.cc, `groups` prompts and `completions` completions. Writes out [rows, heads, 128],
// promptLse [heads, promptRows] and lse [heads, rows - promptRows] (NULL where that is none). scratch: what ..Scratch says, bytes, aligned to 16.
typedef struct {
  const void *q, *k, *v;
  const int *cuPrompt, *cuGroup, *cuCompletion, *chunkStarts, *chunkLengths;
  void* out;
  float *promptLse, *lse;
  void* scratch;
  int64_t strideQ, strideK, strideV;
  int32_t rows, promptRows, groups, completions, chunks, heads, kvHeads;
  float scale;
} GroveGroupAttentionForward;
typedef int (*GroveGroupAttentionForwardLauncher)(const GroveGroupAttentionForward* arguments, void* stream);
typedef int64_t (*GroveGroupAttentionForwardScratch)(int chunks);
// 1 where the current device can run it with this head size, else 0.
typedef int (*GroveGroupAttentionForwardFits)(int headDim);

// Adapters side by side: `columns` of y from `column` on belong to rows of b from `row` on. All multiples of 8.
#define kGroveMostLoraSpans 4
typedef struct {
  int count;
  int column[kGroveMostLoraSpans], columns[kGroveMostLoraSpans], row[kGroveMostLoraSpans];
} GroveLoraSpans;
// t [rows, count rank], b [M, rank], bfloat16, contiguous, aligned to 16 bytes; rank even.
typedef struct {
  const void *t, *b;
  GroveLoraSpans spans;
  int rank;
} GroveLora;
// t [rows, columns] = scale x [rows, K] a [columns, K]^T, bfloat16, contiguous, aligned to 16 bytes; K a multiple of 32. A row's result depends on that row
// alone. Chained: it begins to read a while earlier kernels of the stream may still run.
typedef int (*GroveLoraDownLauncher)(const void* x, const void* a, void* t, int rows, int columns, int K, float scale, void* stream);
// y [rows, N] += t b^T, span by span, contiguous, aligned to 16 bytes; N a multiple of 8. A row's result depends on that row alone. Chained.
typedef int (*GroveLoraUpLauncher)(void* y, const GroveLora* lora, int rows, int N, void* stream);

// out = x w^T and what follows it: x [m, k], w [n, k] (swiglu: [2 n, k], gate rows before up rows), out [m, n]; addend: bias [n], residual [m, n],
// else NULL. All bfloat16, contiguous, aligned to 16 bytes; n a multiple of 8, k of 128. Chained (kernels/launch.cuh): it begins to read w while
// earlier kernels of the stream may still run. ResidualHalves sums over k in two halves, cut at (k / 256 + 1) / 2 * 256; k a multiple of 256, 4096 or more.
// lora, not with Plain, or NULL: t b^T is added as the last (swiglu: before silu, to gate and up, columns [0, n) and [n, 2 n)), after rounding, so that the
// bits are those of grove_lora_up behind this.
enum GroveEpilogue { kGrovePlain = 0, kGroveBias = 1, kGroveResidual = 2, kGroveSwiglu = 3, kGroveResidualHalves = 4 };
typedef int (*GroveSkinnyLinearLauncher)(int epilogue, const void* x, const void* w, const void* addend, const GroveLora* lora, void* out, int m, int n,
                                         int k, void* stream);
// 1 where the current device can run it (compute capability 9.0), else 0.
typedef int (*GroveSkinnyLinearFits)(void);

// x, out [rows, columns], weight [columns], all bfloat16, aligned to 16 bytes; scales [rows]: 1 / rms. columns a multiple of 8, at most 8192.
typedef int (*GroveRmsNormLauncher)(const void* x, const void* weight, void* out, float* scales, int rows, int columns, float eps, void* stream);

// The backward of out = y weight (+ bias) by rows, y = (x - mean) scale; mean NULL: an RMS norm. x, dout, addend and dx [rows, columns], weight, bias
// and their gradients [columns], all bfloat16, aligned to 16 bytes; mean, scale float32 [rows]; scratch: float32 [what ..Scratch says]. dx is the
// gradient of x plus addend (or NULL). dWeight, dBias: NULL where not wanted; adds..: to what they hold. columns a multiple of 8, at most 8192.
typedef struct {
  const void *x, *weight, *dout, *addend;
  const float *mean, *scale;
  void *dx, *dWeight, *dBias;
  int32_t addsWeight, addsBias;
  float* scratch;
  int32_t rows, columns;
} GroveNormBackward;
typedef int (*GroveNormBackwardLauncher)(const GroveNormBackward* arguments, void* stream);
typedef int64_t (*GroveColumnScratch)(int rows, int columns);

// out [columns] = the sum of x [rows, columns] over its rows, bfloat16, x aligned to 16 bytes; `adds`: to what out holds. parts: float32 [what
// grove_column_sums_scratch says]. columns a multiple of 8.
typedef int (*GroveColumnSumsLauncher)(const void* x, void* out, float* parts, int rows, int columns, int adds, void* stream);

// logits [rows, vocab], bfloat16, aligned to 16 bytes, become (onehot(target) - exp(logit - logSum)) * dLogprob; the others [rows]. vocab a multiple of 8,
// rows at most 65535.
typedef int (*GroveLogprobBackwardLauncher)(void* logits, const int64_t* targets, const float* logSums, const float* dLogprobs, int rows, int vocab,
                                            void* stream);

// table[ids[i]] += rows[order[i]] for i < count, ids ascending, rows and table bfloat16 with `columns` (a multiple of 8) each, aligned to 16 bytes. Ids
// except0 and except1 are left out.
typedef int (*GroveAddRowsLauncher)(const int64_t* ids, const int64_t* order, const void* rows, void* table, int count, int columns, int64_t except0,
                                    int64_t except1, void* stream);

// Gradients [rows of the part, heads or kvHeads, headDim] of the parts of a group attention: of the first promptRows rows promptQ, promptK + crossK and
// promptV + crossV, of the others crossQ + ownQ, ownK and ownV; cross.. and own.. NULL where there are no others. q and k are turned back by cosines and
// sines [rows, headDim], bfloat16 or float32. Into out [rows, heads + 2 kvHeads, headDim]. All bfloat16, contiguous, aligned to 16 bytes; headDim a
// multiple of 16.
typedef struct {
  const void *promptQ, *promptK, *promptV, *crossQ, *crossK, *crossV, *ownQ, *ownK, *ownV, *cosines, *sines;
  void* out;
  int32_t tableIsBfloat16, rows, promptRows, heads, kvHeads, headDim;
} GroveGatherGradients;
typedef int (*GroveGatherGradientsLauncher)(const GroveGatherGradients* arguments, void* stream);

// The backward of a group attention of head size 128; shapes and meaning in native/group_attention.cc. dout and out [rows, heads, 128] contiguous; q
// [rows, heads, 128], k and v [rows, kvHeads, 128] with stride.. values from row to row, a multiple of 8: bfloat16, aligned to 16 bytes. promptLse [heads,
// promptRows] and completionLse [heads, the other rows]: float32, natural logarithms. cu..: int32 on the device. stats: float32 [2 heads rows], scratch.
// sumQ [heads, rows, 128], sumK and sumV [kvHeads, rows, 128], float32: the gradients (of q and k: over scale), in the order of kernels/sum_layout.cuh. The
// last bits differ from run to run.
typedef struct {
  const void *dout, *out, *q, *k, *v;
  const float *promptLse, *completionLse;
  const int32_t *cuPrompt, *cuGroup, *cuCompletion;
  void* stats;
  float *sumQ, *sumK, *sumV;
  int64_t strideQ, strideK, strideV;
  int32_t rows, promptRows, prompts, completions, maxPrompt, maxCompletion, heads, kvHeads;
  float scale;
} GroveGroupBackward;
typedef int (*GroveGroupBackwardLauncher)(const GroveGroupBackward* arguments, void* stream);
// 1 where the current device can run it (compute capability 9.0) with this head size, else 0.
typedef int (*GroveGroupBackwardFits)(int headDim);

// Those sums as bfloat16, those of q and k times scale and turned back by cosines and sines [rows, 128], bfloat16 or float32, or NULL: not turned. Into dq,
// dk and dv, stride.. values from row to row, of k and v the same; aligned to 16 bytes.
typedef struct {
  const float *sumQ, *sumK, *sumV;
  const void *cosines, *sines;
  void *dq, *dk, *dv;
  int64_t strideQ, strideK;
  int32_t tableIsBfloat16, rows, heads, kvHeads;
  float scale;
} GroveGatherSums;
typedef int (*GroveGatherSumsLauncher)(const GroveGatherSums* arguments, void* stream);

// positions [A, tokens], axes and frequencies [count], cosines and sines bfloat16 [tokens, 2 * count]; see native/rope_table.cc.
typedef int (*GroveRopeTableLauncher)(const int64_t* positions, const int64_t* axes, const float* frequencies, void* cosines, void* sines,
                                      int tokens, int count, void* stream);

// Element by element, bfloat16, contiguous but for rotate's x, aligned to 16 bytes; see native/pointwise.cc. gateUp and dGateUp [rows, 2 * columns],
// out, dProduct and product [rows, columns], columns a multiple of 8.
typedef int (*GroveSwigluLauncher)(const void* gateUp, void* out, int64_t rows, int columns, void* stream);
typedef int (*GroveSwigluBackwardLauncher)(const void* gateUp, const void* dProduct, void* dGateUp, void* product, int64_t rows, int columns,
                                           void* stream);
// numel a multiple of 8; dOut NULL for the forward.
typedef int (*GroveQuickGeluLauncher)(const void* x, const void* dOut, void* out, int64_t numel, void* stream);
// out = round(round(sum) + residual); sum float32; numel a multiple of 8.
typedef int (*GroveAddRoundedLauncher)(const float* sum, const void* residual, void* out, int64_t numel, void* stream);
// x [tokens, heads, headDim], rowStride values from token to token, a multiple of 8; cosines and sines [tokens, headDim], bfloat16 or float32;
// headDim a multiple of 16.
typedef int (*GroveRotateLauncher)(const void* x, const void* cosines, const void* sines, int tableIsBfloat16, void* out, int64_t tokens,
                                   int heads, int headDim, int64_t rowStride, int backward, void* stream);

// One step of sampling: shapes and meaning in native/sample_tokens.cc. topK 0 and topP 1 keep all. scratch: float32 [what GroveSampleScratch says];
// that is 0 for vocabularies that are too large.
typedef int (*GroveSampleTokensLauncher)(const void* logits, int isBfloat16, const int* source, const int* slot, const int* forbidden,
                                         const int* stops, const int* key, const int* limit, int64_t* tokens, int64_t* ropePositions,
                                         int* ownLength, int* done, int* ids, float* logprobs, float* sampledLogprobs, float* entropies,
                                         float* scratch, int n, int vocab, int slots, int room, float temperature, int topK, float topP,
                                         int greedy, void* stream);
typedef int64_t (*GroveSampleScratch)(int64_t rows, int64_t vocab);

// logprob, entropy [rows] of ids [rows] under the softmax of logits [rows, vocab]; scratch as above.
typedef int (*GroveTokenLogprobsLauncher)(const void* logits, int isBfloat16, const int64_t* ids, float* logprob, float* entropy, float* scratch,
                                          int rows, int vocab, void* stream);
