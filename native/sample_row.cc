#include "sample_row.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace grove {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// The largest value; NaN only where there is nothing else.
float largest(const std::vector<float>& values) {
  float max = kNone;
  for (const float x : values) max = x > max ? x : max;
  return max;
}

// The value of the k-th largest; values is reordered. k from 1 to their number.
float kthLargest(std::vector<float> values, int64_t k) {
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  return values[k - 1];
}

// The smallest value to keep so that those kept reach the probability topP: a value stays if what lies above it holds less than topP. The
// largest always stays.
float nucleusEdge(std::vector<float> values, double topP) {
  std::sort(values.begin(), values.end(), std::greater<float>());
  double total = 0;
  for (const float x : values) total += std::exp(x - values[0]);
  double above = 0;
  size_t last = 0;
  for (size_t i = 1; i < values.size(); i++) {
    above += std::exp(values[i - 1] - values[0]);
    if (above >= topP * total) break;
    last = i;
  }
  return values[last];
}

void dropBelow(std::vector<float>& values, float edge) {
  for (float& x : values) {
    if (x < edge) x = kNone;
  }
}

}  // namespace

float philoxUniform(uint32_t key0, uint32_t key1, uint32_t position) {
  uint32_t x[4] = {position, 0, 0, 0};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xd2511f53} * x[0], b = uint64_t{0xcd9e8d57} * x[2];
    x[0] = static_cast<uint32_t>(b >> 32) ^ x[1] ^ key0;
    x[1] = static_cast<uint32_t>(b);
    x[2] = static_cast<uint32_t>(a >> 32) ^ x[3] ^ key1;
    x[3] = static_cast<uint32_t>(a);
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  return static_cast<float>(x[0] >> 8) * 0x1p-24f;
}

template <class T>
SampledToken sampleRow(const T* logits, int64_t vocab, float u, const SamplingOptions& options) {
  std::vector<float> values(logits, logits + vocab);  // first the plain logits, then those to draw from
  const float max = largest(values);
  double total = 0, weighted = 0;
  for (const float x : values) {
    const float w = std::exp(x - max);
    total += w;
    if (w != 0) weighted += w * (x - max);
  }
  const double logTotal = std::log(total);
  const auto logprob = [&](int64_t id) { return static_cast<float>(static_cast<float>(logits[id]) - max - logTotal); };
  const float entropy = static_cast<float>(logTotal - weighted / total);
  if (std::isnan(total)) return {0, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::quiet_NaN(), entropy};

  for (int64_t i = 0; i < vocab; i++) {
    if (holds(options.forbidden, i)) values[i] = kNone;
  }
  if (options.greedy) {
    const int64_t id = std::max_element(values.begin(), values.end()) - values.begin();
    return {id, logprob(id), 0, entropy};
  }
  for (float& x : values) x /= static_cast<float>(options.temperature);
  if (options.topK > 0 && options.topK < vocab) dropBelow(values, kthLargest(values, options.topK));
  if (options.topP < 1) dropBelow(values, nucleusEdge(values, options.topP));

  const float top = largest(values);
  double kept = 0;
  for (float& x : values) kept += x = std::exp(x - top);  // from here on weights
  const double target = u * kept;
  double reached = 0;
  int64_t id = 0;
  for (int64_t i = 0; i < vocab && reached <= target; i++) {
    if (values[i] == 0) continue;
    reached += values[i];
    id = i;
  }
  return {id, logprob(id), static_cast<float>(std::log(values[id] / kept)), entropy};
}

template SampledToken sampleRow(const float*, int64_t, float, const SamplingOptions&);
template SampledToken sampleRow(const c10::BFloat16*, int64_t, float, const SamplingOptions&);

}  // namespace grove
