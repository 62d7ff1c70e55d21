// grove_adamw: one AdamW step of all parameters in one launch; what it computes is explained in native/adamw.cc, the arithmetic of an element is
// native/adamw_element.h, shared with the CPU: both give the same bits (test/torch/adamw.gpu.test.ts).
//
// Bound by memory: with bfloat16 weights an element moves 10 bytes of weight, low bits and gradient, and 16, 8 or 4 of moments. A warp takes 256
// neighbours at a time, a block of the 8-bit moments, so their largest magnitude is a matter of shuffles. A lane holds four neighbours twice, in
// accesses of 4, 8 or 16 bytes that a warp makes without gaps, and both are loaded before either is used.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "../adamw_element.h"
#include "../kernels.h"

namespace {

using namespace grove::adamw;

constexpr int kWarps = 8;
constexpr int kBlocksOfWarp = 32;  // the search for the first one's parameter is shared by so many
constexpr int64_t kChunk = static_cast<int64_t>(kWarps) * kBlocksOfWarp * kBlock;  // elements of a thread block: 65,536

template <typename T>
struct alignas(4 * sizeof(T)) Quad {  // four neighbours in one access
  T at[4];
};

template <typename T>
__device__ Quad<T> loadQuad(const T* from, int64_t i) {
  return *reinterpret_cast<const Quad<T>*>(from + i);
}
template <typename T>
__device__ void storeQuad(T* to, int64_t i, const Quad<T>& quad) {
  *reinterpret_cast<Quad<T>*>(to + i) = quad;
}

__device__ float widen(float x) { return x; }
__device__ float widen(uint16_t bits) { return fromBfloat16(bits); }

__device__ float warpMax(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
  return x;
}

struct Buffers {
  const void* grad;
  int16_t* low;
  void *m, *v;
  float *mScale, *vScale;
  const float* norm;
  int64_t begin, end;
};

// The last segment that begins at `flat` or before.
__device__ int findSegment(const GroveSegment* segments, int count, int64_t flat) {
  int first = 0, beyond = count;
  while (beyond - first > 1) {
    const int middle = (first + beyond) / 2;
    if (segments[middle].start <= flat) first = middle;
    else beyond = middle;
  }
  return first;
}

// Weights of one lane: all of its elements at once, or those that the parameter has where it ends or is not aligned. W is float or uint16_t.
template <typename W>
__device__ Quad<W> loadWeights(const W* weight, int64_t index, int64_t numel, bool whole) {
  if (whole) return loadQuad(weight, index);
  Quad<W> quad;
#pragma unroll
  for (int k = 0; k < 4; k++) quad.at[k] = index + k < numel ? weight[index + k] : W{0};
  return quad;
}
template <typename W>
__device__ void storeWeights(W* weight, int64_t index, int64_t numel, bool whole, const Quad<W>& quad) {
  if (whole) return storeQuad(weight, index, quad);
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (index + k < numel) weight[index + k] = quad.at[k];
}

// M: how a moment is stored, float, uint16_t (bfloat16) or uint8_t (codes).
template <typename M>
__device__ void loadMoments(const Buffers& b, const int64_t (&at)[2], int64_t block, float (&mean)[2][4], float (&square)[2][4]) {
  Quad<M> m[2], v[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    m[h] = loadQuad(static_cast<const M*>(b.m), at[h]);
    v[h] = loadQuad(static_cast<const M*>(b.v), at[h]);
  }
  float ofMean = 0, ofSquare = 0;
  if constexpr (sizeof(M) == 1) ofMean = b.mScale[block], ofSquare = b.vScale[block];
#pragma unroll
  for (int h = 0; h < 2; h++) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if constexpr (sizeof(M) == 1) {
        mean[h][k] = decodeMean(m[h].at[k], ofMean);
        square[h][k] = decodeSquare(v[h].at[k], ofSquare);
      } else {
        mean[h][k] = widen(m[h].at[k]);
        square[h][k] = widen(v[h].at[k]);
      }
    }
  }
}

// quads: numbers of the lane's groups of four within the parameter, for the random words.
template <typename M>
__device__ void storeMoments(const Buffers& b, const GroveSegment& segment, const int64_t (&at)[2], int64_t block, const uint64_t (&quads)[2],
                             uint32_t update, const float (&mean)[2][4], const float (&square)[2][4]) {
  float ofMean = 0, ofSquare = 0;
  if constexpr (sizeof(M) == 1) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        ofMean = fmaxf(ofMean, fabsf(mean[h][k]));
        ofSquare = fmaxf(ofSquare, square[h][k]);
      }
    }
    ofMean = scaleOf(warpMax(ofMean));
    ofSquare = scaleOf(warpMax(ofSquare));
    if (threadIdx.x % 32 == 0) b.mScale[block] = ofMean, b.vScale[block] = ofSquare;
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    Quad<M> m, v;
    if constexpr (sizeof(M) == 4) {
#pragma unroll
      for (int k = 0; k < 4; k++) m.at[k] = mean[h][k], v.at[k] = square[h][k];
    } else {
      const Words random = randomWords(segment.key0, segment.key1, quads[h], update);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const uint32_t forMean = random.at[k] & 0xffffu, forSquare = random.at[k] >> 16;
        if constexpr (sizeof(M) == 2) {
          m.at[k] = roundBfloat16(mean[h][k], forMean);
          v.at[k] = roundBfloat16(square[h][k], forSquare);
        } else {
          m.at[k] = encodeMean(mean[h][k], ofMean, forMean);
          v.at[k] = encodeSquare(square[h][k], ofSquare, forSquare);
        }
      }
    }
    storeQuad(static_cast<M*>(b.m), at[h], m);
    storeQuad(static_cast<M*>(b.v), at[h], v);
  }
}

// The 256 elements from `flat` on, by one warp. W: float, or uint16_t for bfloat16 weights with low bits.
template <typename W, typename M>
__device__ void updateBlock(const GroveSegment& segment, const Buffers& b, int64_t flat, float scale, const Step& s) {
  const int lane = threadIdx.x % 32;
  const int64_t first = flat - segment.start;
  W* weight = static_cast<W*>(segment.weight);
  const bool whole = first + kBlock <= segment.numel && reinterpret_cast<uintptr_t>(weight) % (4 * sizeof(W)) == 0;
  const int64_t block = (flat - b.begin) / kBlock;
  int64_t index[2], of[2], at[2];
  uint64_t quads[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int inside = h * 128 + lane * 4;
    index[h] = first + inside;
    of[h] = flat + inside;
    at[h] = flat - b.begin + inside;
    quads[h] = static_cast<uint64_t>(index[h] / 4);
  }

  Quad<W> p[2], g[2];
  Quad<int16_t> low[2];
  float mean[2][4], square[2][4];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    p[h] = loadWeights(weight, index[h], segment.numel, whole);
    g[h] = loadQuad(static_cast<const W*>(b.grad), of[h]);
    if constexpr (sizeof(W) == 2) low[h] = loadQuad(b.low, of[h]);
  }
  loadMoments<M>(b, at, block, mean, square);

  const float decay = segment.decays ? s.decay : 0;
#pragma unroll
  for (int h = 0; h < 2; h++) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float gradient = times(widen(g[h].at[k]), scale);
      if constexpr (sizeof(W) == 2) {
        const float master = updated(joinMaster(p[h].at[k], low[h].at[k]), gradient, mean[h][k], square[h][k], decay, s);
        splitMaster(master, &p[h].at[k], &low[h].at[k]);
      } else {
        p[h].at[k] = updated(p[h].at[k], gradient, mean[h][k], square[h][k], decay, s);
      }
    }
    storeWeights(weight, index[h], segment.numel, whole, p[h]);
    if constexpr (sizeof(W) == 2) storeQuad(b.low, of[h], low[h]);
  }
  storeMoments<M>(b, segment, at, block, quads, s.update, mean, square);
}

template <typename W, typename M>
__global__ void __launch_bounds__(kWarps * 32) adamwKernel(const GroveSegment* segments, int count, Buffers b, Step s) {
  const float norm = *b.norm;
  if (!isfinite(norm)) return;
  const float scale = clipScale(norm, s.maxNorm);
  const int warp = threadIdx.x / 32;
  const int64_t chunk = b.begin + blockIdx.x * kChunk, end = min(b.end, chunk + kChunk);
  int64_t flat = chunk + warp * kBlock;
  if (flat >= end) return;
  int at = findSegment(segments, count, flat);
  GroveSegment segment = segments[at];
  int64_t next = at + 1 < count ? segments[at + 1].start : INT64_MAX;
  for (; flat < end; flat += kWarps * kBlock) {
    while (flat >= next) {
      segment = segments[++at];
      next = at + 1 < count ? segments[at + 1].start : INT64_MAX;
    }
    if (flat - segment.start < segment.numel) updateBlock<W, M>(segment, b, flat, scale, s);
  }
}

template <typename W>
void launch(const GroveSegment* segments, int count, int moments, const Buffers& b, const Step& s, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((b.end - b.begin + kChunk - 1) / kChunk);
  if (moments == kGroveFloat32) adamwKernel<W, float><<<blocks, kWarps * 32, 0, stream>>>(segments, count, b, s);
  else if (moments == kGroveBfloat16) adamwKernel<W, uint16_t><<<blocks, kWarps * 32, 0, stream>>>(segments, count, b, s);
  else adamwKernel<W, uint8_t><<<blocks, kWarps * 32, 0, stream>>>(segments, count, b, s);
}

}  // namespace

// The launcher; its contract is GroveAdamwLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_adamw(const GroveSegment* segments, int count, const void* grad, int16_t* low,
                                                                  int moments, void* m, void* v, float* mScale, float* vScale, const float* norm,
                                                                  int64_t begin, int64_t end, const GroveAdamwStep* step, void* stream) {
  if (end <= begin) return 0;
  const Buffers b{grad, low, m, v, mScale, vScale, norm, begin, end};
  const Step s{step->beta1,     step->gain1,            step->beta2, step->gain2,   step->eps,
               step->stepSize, step->rsqrtCorrection2, step->decay, step->maxNorm, step->update};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (low != nullptr) launch<uint16_t>(segments, count, moments, b, s, on);
  else launch<float>(segments, count, moments, b, s, on);
  return static_cast<int>(cudaGetLastError());
}
