// One softmax over the keys of a prompt and a completion's own, block by block with a running maximum. All queries of a group go over a block of its
// prompt while that is in the cache. What a query adds up, and in which order, depends on nothing but its own keys.
#include "decode_attention_cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#pragma GCC optimize("O3")  // vector instructions for the loops over keys and over a head

namespace grove {
namespace {

constexpr int64_t kBlock = 32;  // keys taken at a time: those and their values stay in the first-level cache

// Queries of one key/value head and their attention so far.
template <class scalar>
class Queries {
 public:
  Queries(int64_t count, int64_t headDim)
      : headDim_(headDim), query_(count * headDim), sum_(count * headDim), max_(count, -std::numeric_limits<scalar>::infinity()), total_(count),
        turned_(headDim * kBlock) {}

  scalar* query(int64_t q) { return &query_[q * headDim_]; }

  // Adds keys to queries first .. first + count - 1. keys and values: rows of a head, `stride` values apart.
  void attend(int64_t first, int64_t count, const scalar* keys, const scalar* values, int64_t stride, int64_t keyCount) {
    for (int64_t k = 0; k < keyCount; k += kBlock) {
      const int64_t n = std::min(kBlock, keyCount - k);
      for (int64_t j = 0; j < n; j++) {
        for (int64_t d = 0; d < headDim_; d++) turned_[d * kBlock + j] = keys[(k + j) * stride + d];
      }
      for (int64_t q = first; q < first + count; q++) attendBlock(q, values + k * stride, stride, n);
    }
  }

  void result(int64_t q, scalar* out) const {
    for (int64_t d = 0; d < headDim_; d++) out[d] = sum_[q * headDim_ + d] / total_[q];
  }

 private:
  void attendBlock(int64_t q, const scalar* values, int64_t stride, int64_t n) {
    scalar score[kBlock] = {};
    for (int64_t d = 0; d < headDim_; d++) {
      const scalar x = query_[q * headDim_ + d];
      for (int64_t j = 0; j < kBlock; j++) score[j] += x * turned_[d * kBlock + j];
    }
    const scalar max = std::max(max_[q], *std::max_element(score, score + n));
    const scalar rescale = std::exp(max_[q] - max);
    scalar* sum = &sum_[q * headDim_];
    for (int64_t d = 0; d < headDim_; d++) sum[d] *= rescale;
    scalar total = total_[q] * rescale;
    for (int64_t j = 0; j < n; j++) {
      const scalar w = std::exp(score[j] - max);
      total += w;
      for (int64_t d = 0; d < headDim_; d++) sum[d] += w * values[j * stride + d];
    }
    max_[q] = max;
    total_[q] = total;
  }

  int64_t headDim_;
  std::vector<scalar> query_, sum_;  // [count, headDim]; sum_ of values by weight
  std::vector<scalar> max_, total_;  // [count] of scores, and of weights relative to the largest
  std::vector<scalar> turned_;       // [headDim, kBlock], the keys at hand
};

// x cos + roll(x) sin, sin's first half negated
template <class scalar>
void rotate(const scalar* x, const scalar* cos, const scalar* sin, int64_t headDim, scalar* out) {
  const int64_t half = headDim / 2;
  for (int64_t d = 0; d < headDim; d++) out[d] = x[d] * cos[d] + x[d < half ? d + half : d - half] * sin[d];
}

// One step, letters as in decode_attention.cc.
template <class scalar>
struct Step {
  const scalar *qkv, *cos, *sin, *promptK, *promptV;
  scalar *ownK, *ownV, *out;
  const int *rows, *promptStart, *promptLength, *ownLength, *slots;
  int64_t G, H, HK, D, N;
  scalar scale;

  int64_t slot(int64_t b) const { return slots == nullptr ? b : slots[b]; }

  // Of group g the query heads that belong to key/value head h.
  void attend(int64_t g, int64_t h) const {
    std::vector<int64_t> members;
    std::copy_if(rows + g * G, rows + (g + 1) * G, std::back_inserter(members), [](int b) { return b >= 0; });
    const int64_t count = static_cast<int64_t>(members.size()), perKv = H / HK, stride = HK * D;
    if (count == 0) return;
    Queries<scalar> queries(count * perKv, D);
    for (int64_t i = 0; i < count; i++) takeNewest(members[i], h, queries, i * perKv);
    const int64_t prompt = promptStart[g] * stride + h * D;
    queries.attend(0, count * perKv, promptK + prompt, promptV + prompt, stride, promptLength[g]);
    for (int64_t i = 0; i < count; i++) {
      const int64_t b = members[i], own = slot(b) * N * stride + h * D;
      queries.attend(i * perKv, perKv, ownK + own, ownV + own, stride, ownLength[slot(b)] + 1);
      for (int64_t r = 0; r < perKv; r++) queries.result(i * perKv + r, out + (b * H + h * perKv + r) * D);
    }
  }

  // Rotates completion b's newest token: its queries, scaled, become first, first + 1, ...; its key and value go to the cache.
  void takeNewest(int64_t b, int64_t h, Queries<scalar>& queries, int64_t first) const {
    const scalar* heads = qkv + b * (H + 2 * HK) * D;
    const int64_t perKv = H / HK, cached = ((slot(b) * N + ownLength[slot(b)]) * HK + h) * D;
    for (int64_t r = 0; r < perKv; r++) {
      scalar* query = queries.query(first + r);
      rotate(heads + (h * perKv + r) * D, cos + b * D, sin + b * D, D, query);
      for (int64_t d = 0; d < D; d++) query[d] *= scale;
    }
    rotate(heads + (H + h) * D, cos + b * D, sin + b * D, D, ownK + cached);
    std::copy_n(heads + (H + HK + h) * D, D, ownV + cached);
  }
};

}  // namespace

at::Tensor decode_attention_cpu(const at::Tensor& qkv, const at::Tensor& cos, const at::Tensor& sin, at::Tensor& own_k, at::Tensor& own_v,
                                const at::Tensor& prompt_k, const at::Tensor& prompt_v, const at::Tensor& rows, const at::Tensor& prompt_start,
                                const at::Tensor& prompt_length, const at::Tensor& own_length, double scale, const std::optional<at::Tensor>& slots) {
  const int64_t B = qkv.size(0), HK = own_k.size(2), D = qkv.size(2), H = qkv.size(1) - 2 * HK, N = own_k.size(1);
  const int64_t groups = rows.size(0), G = rows.size(1);
  const int *row = rows.const_data_ptr<int>(), *start = prompt_start.const_data_ptr<int>(), *length = prompt_length.const_data_ptr<int>(),
            *newest = own_length.const_data_ptr<int>(), *slot = slots.has_value() ? slots->const_data_ptr<int>() : nullptr;
  at::Tensor out = at::zeros({B, H, D}, qkv.options());
  AT_DISPATCH_FLOATING_TYPES(qkv.scalar_type(), "decode_attention", [&] {
    const auto in = [](const at::Tensor& x) { return x.const_data_ptr<scalar_t>(); };
    const auto io = [](at::Tensor& x) { return x.mutable_data_ptr<scalar_t>(); };
    const Step<scalar_t> step{in(qkv), in(cos), in(sin), in(prompt_k), in(prompt_v), io(own_k), io(own_v), io(out), row, start,
                              length,  newest,  slot,    G,            H,            HK,        D,         N,       static_cast<scalar_t>(scale)};
    at::parallel_for(0, groups * HK, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) step.attend(task / HK, task % HK);
    });
  });
  return out;
}

}  // namespace grove
