// What grove::sample_tokens computes for one row, on the CPU.
#pragma once

#include <cstdint>

namespace grove {

// Of all rows of a call.
struct SamplingOptions {
  double temperature;        // divides the logits; above 0
  int64_t topK;              // keeps the k largest logits and what ties with the k-th; 0 keeps all
  double topP;               // of these keeps the likeliest that together reach this probability, and what ties with the last; 1 keeps all
  bool greedy;               // takes the largest allowed logit; the options above then count for nothing
  const int* forbidden;      // bit set of the ids that are never sampled
};

struct SampledToken {
  int64_t id;
  float logprob;         // log p(id) under the softmax of the plain logits over the whole vocabulary, nats
  float sampledLogprob;  // log p(id) under the distribution drawn from, nats; 0 when greedy
  float entropy;         // of the softmax of the plain logits, nats
};

// Whether a bit set (bit id % 32 of word id / 32) holds an id.
inline bool holds(const int* set, int64_t id) { return static_cast<uint32_t>(set[id / 32]) >> (id % 32) & 1; }

// The number in [0, 1) that chooses the token at `position` of the completion with this key: 24 bits of Philox4x32-10 (src/rollout/philox.ts).
float philoxUniform(uint32_t key0, uint32_t key1, uint32_t position);

// The first id whose cumulative probability, over the ids that are kept, exceeds u; where rounding leaves none, the last one with a probability above
// 0. logits [vocab]; T is float or c10::BFloat16. A NaN among the logits makes all three figures NaN and the id one of no meaning.
template <class T>
SampledToken sampleRow(const T* logits, int64_t vocab, float u, const SamplingOptions& options);

}  // namespace grove
