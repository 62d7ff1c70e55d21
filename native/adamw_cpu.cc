// grove::adamw_ on the CPU: blocks of 256 elements at a time, shared out among threads.
#include <ATen/Parallel.h>

#include <algorithm>

#include "adamw.h"

namespace grove::adamw {

namespace {

// Where a block's elements are: `index` in parameter `segment`, of which `valid` remain, at most 256; `flat` in the flat buffers.
struct Block {
  size_t segment;
  int64_t index, flat, valid;
};

struct Master {  // float32 weights, as they are
  float* weights;
  float load(int64_t i) const { return weights[i]; }
  void store(int64_t i, float p) const { weights[i] = p; }
};

struct SplitMaster {  // bfloat16 weights and their low bits
  uint16_t* weights;
  int16_t* low;
  float load(int64_t i) const { return joinMaster(weights[i], low[i]); }
  void store(int64_t i, float p) const { splitMaster(p, &weights[i], &low[i]); }
};

float widen(float x) { return x; }
float widen(c10::BFloat16 x) { return fromBfloat16(x.x); }

// The moments of one block, between how they are stored and float32. `at` is relative to the first element of m and v.
struct Float32Moments {
  float *m, *v;
  void load(int64_t at, int64_t valid, float* mean, float* square) const {
    std::copy_n(m + at, valid, mean);
    std::copy_n(v + at, valid, square);
  }
  void store(int64_t at, int64_t valid, const float* mean, const float* square, const Words*) const {
    std::copy_n(mean, valid, m + at);
    std::copy_n(square, valid, v + at);
  }
};

struct Bfloat16Moments {
  uint16_t *m, *v;
  void load(int64_t at, int64_t valid, float* mean, float* square) const {
    std::transform(m + at, m + at + valid, mean, fromBfloat16);
    std::transform(v + at, v + at + valid, square, fromBfloat16);
  }
  void store(int64_t at, int64_t valid, const float* mean, const float* square, const Words* random) const {
    for (int64_t i = 0; i < valid; i++) {
      const uint32_t word = random[i / 4].at[i % 4];
      m[at + i] = roundBfloat16(mean[i], word & 0xffffu);
      v[at + i] = roundBfloat16(square[i], word >> 16);
    }
  }
};

struct CodedMoments {
  uint8_t *m, *v;
  float *mScale, *vScale;
  void load(int64_t at, int64_t valid, float* mean, float* square) const {
    const float ofMean = mScale[at / kBlock], ofSquare = vScale[at / kBlock];
    std::transform(m + at, m + at + valid, mean, [=](uint8_t code) { return decodeMean(code, ofMean); });
    std::transform(v + at, v + at + valid, square, [=](uint8_t code) { return decodeSquare(code, ofSquare); });
  }
  void store(int64_t at, int64_t valid, const float* mean, const float* square, const Words* random) const {
    float largestMean = 0, largestSquare = 0;
    for (int64_t i = 0; i < valid; i++) {
      largestMean = std::max(largestMean, std::fabs(mean[i]));
      largestSquare = std::max(largestSquare, square[i]);
    }
    const float ofMean = mScale[at / kBlock] = scaleOf(largestMean);
    const float ofSquare = vScale[at / kBlock] = scaleOf(largestSquare);
    for (int64_t i = 0; i < valid; i++) {
      const uint32_t word = random[i / 4].at[i % 4];
      m[at + i] = encodeMean(mean[i], ofMean, word & 0xffffu);
      v[at + i] = encodeSquare(square[i], ofSquare, word >> 16);
    }
  }
};

template <class G, class M, class S>
void updateBlock(const Update& u, const Block& block, const M& master, const S& moments, const G* grad, float scale) {
  const float decay = u.decays[block.segment] ? u.step.decay : 0;
  float mean[kBlock], square[kBlock];
  const int64_t at = block.flat - u.begin;
  moments.load(at, block.valid, mean, square);
  for (int64_t i = 0; i < block.valid; i++) {
    const float g = times(widen(grad[i]), scale);
    master.store(i, updated(master.load(i), g, mean[i], square[i], decay, u.step));
  }
  Words random[kBlock / 4];
  if (!std::is_same_v<S, Float32Moments>) {
    const auto word = [&](size_t k) { return static_cast<uint32_t>(u.keys[2 * block.segment + k]); };
    for (int64_t quad = 0; 4 * quad < block.valid; quad++)
      random[quad] = randomWords(word(0), word(1), static_cast<uint64_t>(block.index / 4 + quad), u.step.update);
  }
  moments.store(at, block.valid, mean, square, random);
}

// Calls work(block) for every block of [begin, end), on several threads.
template <class F>
void forEachBlock(const Update& u, const F& work) {
  const int64_t first = u.begin / kBlock, last = (u.end() + kBlock - 1) / kBlock;
  at::parallel_for(first, last, 64, [&](int64_t from, int64_t to) {
    size_t segment = std::upper_bound(u.starts.begin(), u.starts.end(), from * kBlock) - u.starts.begin() - 1;
    for (int64_t block = from; block < to; block++) {
      const int64_t flat = block * kBlock;
      while (segment + 1 < u.starts.size() && u.starts[segment + 1] <= flat) segment++;
      const int64_t index = flat - u.starts[segment];
      const int64_t valid = std::min<int64_t>(kBlock, u.params[segment].numel() - index);
      if (valid > 0) work(Block{segment, index, flat, valid});
    }
  });
}

template <class S>
void updateWith(const Update& u, const S& moments) {
  const float scale = clipScale(*u.norm.const_data_ptr<float>(), u.step.maxNorm);
  std::vector<void*> weights;
  for (const at::Tensor& param : u.params) weights.push_back(param.mutable_data_ptr());
  if (u.low.has_value()) {
    auto* low = u.low->mutable_data_ptr<int16_t>();
    const auto* grad = u.grad.const_data_ptr<c10::BFloat16>();
    return forEachBlock(u, [&](const Block& b) {
      const SplitMaster master{static_cast<uint16_t*>(weights[b.segment]) + b.index, low + b.flat};
      updateBlock(u, b, master, moments, grad + b.flat, scale);
    });
  }
  const float* grad = u.grad.const_data_ptr<float>();
  forEachBlock(u, [&](const Block& b) {
    updateBlock(u, b, Master{static_cast<float*>(weights[b.segment]) + b.index}, moments, grad + b.flat, scale);
  });
}

}  // namespace

void updateCpu(const Update& u) {
  if (!std::isfinite(*u.norm.const_data_ptr<float>())) return;
  const auto pointers = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return std::pair{static_cast<T*>(u.m.mutable_data_ptr()), static_cast<T*>(u.v.mutable_data_ptr())};
  };
  if (u.m.scalar_type() == at::kFloat) {
    const auto [m, v] = pointers(static_cast<float*>(nullptr));
    return updateWith(u, Float32Moments{m, v});
  }
  if (u.m.scalar_type() == at::kBFloat16) {
    const auto [m, v] = pointers(static_cast<uint16_t*>(nullptr));
    return updateWith(u, Bfloat16Moments{m, v});
  }
  const auto [m, v] = pointers(static_cast<uint8_t*>(nullptr));
  updateWith(u, CodedMoments{m, v, u.mScale->mutable_data_ptr<float>(), u.vScale->mutable_data_ptr<float>()});
}

}  // namespace grove::adamw
