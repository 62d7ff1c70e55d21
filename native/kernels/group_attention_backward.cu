// grove_group_attention_backward: gradients of a group attention (native/group_attention.cc) from its outputs and log-sum-exps, for head size 128. With
//   P = exp(scale q k^T - lse),   D = rowsum(dout * out),   dS = P * (dout v^T - D)
// it is dv = P^T dout, dk = scale dS^T q, dq = scale dS k. Hopper only.
//
// A block of three warpgroups has 128 keys. Two multiply, 64 keys each, and keep the sums for dk and dv in registers over all rows of queries that attend
// to these keys, prompt rows and completions alike; the third has the copy engine bring queries and dout, 64 rows a step. S and dP are computed transposed,
// so that P and dS are left operands of the sums where they lie; for dq, dS passes through shared memory once and each warpgroup takes half of the head's
// columns over all 128 keys. Sums that several blocks have a part in (dq of all blocks of keys, dk and dv of the query heads of a kv head) are added in
// float32 in global memory; kernels/gather_sums.cu reads them.
#include "../kernels.h"
#include "backward_steps.cuh"
#include "launch.cuh"
#include "tensor_map.cuh"

namespace {

__global__ void __launch_bounds__(kThreads, 1)
    groupBackward(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v,
                  const __grid_constant__ CUtensorMap dout, const Arguments a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) uint8_t memory[];  // whole groups of eight swizzled rows
  Shared& s = *reinterpret_cast<Shared*>(memory);
  Item item;
  if (!findItem(a, item)) return;
  if (threadIdx.x == 0) {
    barrierInit(&s.fullKeys, 1);
    for (int i = 0; i < kStages; i++) {
      barrierInit(&s.full[i], 1);
      barrierInit(&s.empty[i], kMultipliers / 32);
    }
    barrierInitDone();
  }
  __syncthreads();
  letNextStart();
  waitForPrevious();
  if (threadIdx.x >= kMultipliers) {
    giveRegisters<24>();
    if (threadIdx.x < kMultipliers + 32) bring(s, item, a, &q, &k, &v, &dout);
  } else {
    takeRegisters<240>();
    multiply(s, item, a);
  }
#endif
}

constexpr int kPrepareThreads = 256, kPrepareRows = 64;  // of a block

// Clears the sums and writes what a step needs of each row of queries: sixteen lanes a row.
__global__ void __launch_bounds__(kPrepareThreads)
    prepareBackward(const __nv_bfloat16* dout, const __nv_bfloat16* out, const float* promptLse, const float* completionLse, Arguments a, float2* stats) {
  letNextStart();
  const int head = blockIdx.y, lane = threadIdx.x % 16, first = blockIdx.x * kPrepareRows + threadIdx.x / 16;
  float* sums = head < a.heads ? a.sumQ + static_cast<int64_t>(head) * a.rows * kHead
                               : (head < a.heads + a.kvHeads ? a.sumK : a.sumV) + static_cast<int64_t>((head - a.heads) % a.kvHeads) * a.rows * kHead;
#pragma unroll
  for (int i = 0; i < kPrepareRows / (kPrepareThreads / 16); i++) {
    const int row = first + i * (kPrepareThreads / 16);
    if (row >= a.rows) break;
    float4* clear = reinterpret_cast<float4*>(sums + static_cast<int64_t>(row) * kHead);
    clear[lane] = clear[lane + 16] = float4{0, 0, 0, 0};
    if (head >= a.heads) continue;
    const int64_t at = (static_cast<int64_t>(row) * a.heads + head) * kHead + 8 * lane;
    const Eight x = *reinterpret_cast<const Eight*>(dout + at), y = *reinterpret_cast<const Eight*>(out + at);
    float dot = 0;
#pragma unroll
    for (int e = 0; e < 8; e++) dot = fmaf(wide(x.at[e]), wide(y.at[e]), dot);
#pragma unroll
    for (int step = 8; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffu << (threadIdx.x & 16), dot, step);
    if (lane == 0) {
      const int completionRows = a.rows - a.promptRows;
      const float lse = row < a.promptRows ? promptLse[static_cast<int64_t>(head) * a.promptRows + row]
                                           : completionLse[static_cast<int64_t>(head) * completionRows + row - a.promptRows];
      stats[static_cast<int64_t>(head) * a.rows + row] = {lse * 1.4426950408889634f, dot};
    }
  }
}

// [rows, heads, 128], `stride` values from row to row, as loadHead takes it: copied in boxes of `box` rows of a head.
bool describe(CUtensorMap* map, const void* data, int rows, int heads, int64_t stride, int box) {
  const cuuint64_t sizes[3] = {64, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(2 * heads)}, strides[2] = {static_cast<cuuint64_t>(stride) * 2, 128};
  const cuuint32_t boxes[3] = {64, static_cast<cuuint32_t>(box), 2};
  return describeTensor(map, data, sizes, strides, boxes);
}

// At most how many blocks of keys there are in `segments` of `rows` in all, the longest of `longest`.
int64_t mostKeyBlocks(int64_t segments, int64_t rows, int64_t longest) {
  if (longest <= 0) return 0;
  const int64_t each = segments * ((longest + kKeys - 1) / kKeys), together = rows / kKeys + segments;
  return each < together ? each : together;
}

constexpr int kCompletionSteps = 8;  // about so many of a block: fewer, and beginning and ending it weigh; more, and some blocks come to their end late

}  // namespace

// Whether the current device can run it with this head size.
extern "C" __attribute__((visibility("default"))) int grove_group_attention_backward_fits(int headDim) {
  int device = 0, major = 0;
  return headDim == kHead && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9;
}

// The launcher; its contract is in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_group_attention_backward(const GroveGroupBackward* arguments, void* stream) {
  const GroveGroupBackward& g = *arguments;
  const int group = g.heads / g.kvHeads, steps = (g.maxCompletion + kQueries - 1) / kQueries, most = steps == 0 ? 1 : kCompletionSteps / steps;
  const int atOnce = most < 1 ? 1 : most > group ? group : most, sets = g.kvHeads * ((group + atOnce - 1) / atOnce);
  const int64_t promptItems = mostKeyBlocks(g.prompts, g.promptRows, g.maxPrompt) * g.heads;
  const int64_t items = promptItems + (g.completions + mostKeyBlocks(g.completions, g.rows - g.promptRows, g.maxCompletion - kKeys)) * sets;
  const Arguments a = {static_cast<const float2*>(g.stats),
                       g.sumQ,
                       g.sumK,
                       g.sumV,
                       g.cuPrompt,
                       g.cuGroup,
                       g.cuCompletion,
                       g.rows,
                       g.promptRows,
                       g.prompts,
                       g.completions,
                       g.heads,
                       g.kvHeads,
                       static_cast<int>(promptItems),
                       atOnce,
                       g.scale * 1.4426950408889634f};
  CUtensorMap q, k, v, dout;
  if (!describe(&q, g.q, g.rows, g.heads, g.strideQ, kQueries) || !describe(&k, g.k, g.rows, g.kvHeads, g.strideK, kKeys) ||
      !describe(&v, g.v, g.rows, g.kvHeads, g.strideV, kKeys) ||
      !describe(&dout, g.dout, g.rows, g.heads, static_cast<int64_t>(g.heads) * kHead, kQueries))
    return static_cast<int>(cudaErrorInvalidValue);
  constexpr int bytes = sizeof(Shared);
  const cudaError_t status = cudaFuncSetAttribute(groupBackward, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return static_cast<int>(status);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  prepareBackward<<<dim3((g.rows + kPrepareRows - 1) / kPrepareRows, g.heads + 2 * g.kvHeads), kPrepareThreads, 0, on>>>(
      static_cast<const __nv_bfloat16*>(g.dout), static_cast<const __nv_bfloat16*>(g.out), g.promptLse, g.completionLse, a, static_cast<float2*>(g.stats));
  const cudaError_t prepared = cudaGetLastError();
  if (prepared != cudaSuccess) return static_cast<int>(prepared);
  return static_cast<int>(launchChained(groupBackward, dim3(static_cast<unsigned>(items)), dim3(kThreads), bytes, on, q, k, v, dout, a));
}
