// The smallest logit that top-k and top-p leave, per row: a radix select over the logits' bits, five at a time. One block has a row; each thread adds
// up its own part of a histogram in its own column of shared memory, so that sums need no atomics and always come out the same.
#pragma once

#include "softmax_tiles.cuh"

namespace {

constexpr int kDigitBits = 5;
constexpr int kBins = 1 << kDigitBits;  // as many as a block has warps and a warp has lanes
constexpr int kCutThreads = 32 * kBins;
constexpr size_t kCutSharedBytes = kBins * kCutThreads * sizeof(float);

struct Cuts {
  int topK;             // 0: all
  float topP;           // 1 or more: all
  float exponentScale;  // log2(e) / temperature
};

// Bits whose order as unsigned integers is that of the floats; -0 counts as 0.
__device__ __forceinline__ uint32_t orderedBits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.f);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}
__device__ __forceinline__ float fromOrderedBits(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

template <class T>
struct LowestBit;  // of a widened logit that can be set
template <>
struct LowestBit<float> {
  static constexpr int value = 0;
};
template <>
struct LowestBit<__nv_bfloat16> {
  static constexpr int value = 16;
};

template <class T, bool kAligned>
class CutFinder {
 public:
  __device__ CutFinder(const T* row, const uint32_t* forbidden, int vocab, float* histogram)
      : row_(row), forbidden_(forbidden), vocab_(vocab), histogram_(histogram) {}

  __device__ float find(const Cuts& cuts) {
    float cut = -CUDART_INF_F;
    if (cuts.topK > 0) cut = select(cut, cuts.topK, false, [](float) { return 1.f; });
    if (cuts.topP < 1) {
      const float max = largest(), scale = cuts.exponentScale;
      cut = select(cut, cuts.topP, true, [=](float x) { return exp2Approximate((x - max) * scale); });
    }
    return cut;
  }

 private:
  // Calls f(logit) for this thread's part of the row, with NaN for ids that may not be drawn and those behind the row's end.
  template <class F>
  __device__ __forceinline__ void eachLogit(F f) const {
#pragma unroll 2
    for (int first = threadIdx.x * kPack; first < vocab_; first += kCutThreads * kPack) {
      float x[kPack];
      loadPack<kAligned>(row_, first, vocab_, x);
      const uint32_t forbidden = forbidden_[first / 32] >> (first % 32), behind = kAligned ? 0 : 0xffu << min(vocab_ - first, kPack);
      const uint32_t excluded = (forbidden | behind) & 0xff;
      if (excluded != 0) {
#pragma unroll
        for (int i = 0; i < kPack; i++) x[i] = excluded >> i & 1 ? CUDART_NAN_F : x[i];
      }
#pragma unroll
      for (int i = 0; i < kPack; i++) f(x[i]);
    }
  }

  __device__ float largest() {
    __shared__ float ofWarp[kBins];
    float max = -CUDART_INF_F;
    eachLogit([&](float x) { max = fmaxf(max, x); });  // which passes NaN over
    max = warpMax(max);
    if (threadIdx.x % 32 == 0) ofWarp[threadIdx.x / 32] = max;
    __syncthreads();
    return warpMax(ofWarp[threadIdx.x % 32]);
  }

  // Of the logits from `from` on, the largest v such that those >= v weigh `need` (of their total, where it is a share); the smallest if all weigh
  // less.
  template <class Weight>
  __device__ float select(float from, float need, bool isShare, Weight weight) {
    __shared__ float ofBin[kBins];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t prefix = 0;  // the leading bits found so far
    float above = 0;      // weight of the logits above those that share them
    for (int shift = 32; shift > LowestBit<T>::value;) {
      const int bits = min(kDigitBits, shift - LowestBit<T>::value);
      shift -= bits;
      // One comparison tells whether a logit counts: it shares the bits found so far, is not below `from`, and is not NaN.
      const uint32_t lowest = max(prefix, orderedBits(from)), highest = min(prefix + ((1u << bits) << shift) - 1, orderedBits(CUDART_INF_F));
      float* column = histogram_ + threadIdx.x;
      for (int bin = 0; bin < kBins; bin++) column[bin * kCutThreads] = 0;
      eachLogit([&](float x) {
        const uint32_t key = orderedBits(x);
        if (key - lowest <= highest - lowest) column[((key - prefix) >> shift) * kCutThreads] += weight(x);
      });
      __syncthreads();
      float sum = 0;
      for (int i = lane; i < kCutThreads; i += 32) sum += histogram_[warp * kCutThreads + i];
      sum = warpSum(sum);
      if (lane == 0) ofBin[warp] = sum;
      __syncthreads();
      // Every warp walks the bins from the largest on, lane by lane.
      const float own = ofBin[kBins - 1 - lane], reached = warpScan(own, lane), preceding = __shfl_up_sync(kAll, reached, 1);
      if (isShare && shift + bits == 32) need *= __shfl_sync(kAll, reached, 31);
      const unsigned filled = __ballot_sync(kAll, own > 0), enough = __ballot_sync(kAll, own > 0 && above + reached >= need);
      if (filled == 0) return from;  // all is NaN
      const int chosen = enough != 0 ? __ffs(enough) - 1 : 31 - __clz(filled);
      above += __shfl_sync(kAll, lane == 0 ? 0.f : preceding, chosen);
      prefix |= static_cast<uint32_t>(kBins - 1 - chosen) << shift;
      __syncthreads();  // before the columns are cleared
    }
    return fromOrderedBits(prefix & 0x80000000u ? prefix : prefix | ((1u << LowestBit<T>::value) - 1));
  }

  const T* row_;
  const uint32_t* forbidden_;
  int vocab_;
  float* histogram_;  // [kBins, kCutThreads], shared
};

}  // namespace
