// grove::sample_tokens: from the logits of a decode step to the next one. It draws a token for every slot that is running, writes down what is known
// about it and advances the slot. Nothing is read back, so that a step, this included, can be captured in a CUDA graph.
//
// Letters: R rows of logits, n draws, S slots, N tokens a slot has room for, V vocabulary.
//   logits [R, V] float32 or bfloat16
//   source, slot [n] int32    draw i is from row source[i] for slot slot[i]; -1: no draw. No running slot twice.
//   forbidden, stops [ceil(V / 32)] int32   bit sets (bit id % 32 of word id / 32): ids never sampled, and ids that end a completion
//   key [S, 2] int32          Philox key of the slot's completion
//   limit [S] int32           most tokens of the slot's completion, at most N
//   tokens [S] int64          the newest token: input of the next step
//   rope_positions [3, S] int64, own_length [S] int32   of the newest token: its place in the rotation, and how many drawn tokens are before it
//   done [S] int32            not 0: the slot is not running; it is left alone, whatever its logits are
//   ids [S, N] int32, logprobs, sampled_logprobs, entropies [S, N] float32   results (sample_row.h) by position in the completion
//
// For draw i with s = slot[i] running, p = own_length[s] + 1 is the position drawn for and the counter of its random number. A slot that has drawn
// nothing has own_length -1. Where there is no room for p the slot is left alone too.
// On CUDA these are kernels/sample_tokens.cu; on the CPU sampleRow() and the loop below.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "kernels.h"
#include "runtime.h"
#include "sample_row.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {
namespace {

using at::Tensor;

struct Slots {
  const Tensor &key, &limit;
  Tensor &tokens, &ropePositions, &ownLength, &done, &ids, &logprobs, &sampledLogprobs, &entropies;
};

void checkArguments(const Tensor& logits, const Tensor& source, const Tensor& slot, const Tensor& forbidden, const Tensor& stops, const Slots& x,
                    double temperature, int64_t topK, double topP) {
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0 && x.ids.dim() == 2, "sample_tokens: expected logits [R, V] and ids [S, N], got ", logits.sizes(), " and ",
              x.ids.sizes());
  TORCH_CHECK(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kBFloat16,
              "sample_tokens: expected dtype float32 or bfloat16 of logits, got ", logits.scalar_type());
  TORCH_CHECK(temperature > 0 && topK >= 0 && topP >= 0, "sample_tokens: temperature must be above 0, top_k and top_p at least 0");
  const int64_t n = source.numel(), S = x.ids.size(0), N = x.ids.size(1), setWords = (logits.size(1) + 31) / 32;
  const auto check = [&](const Tensor& tensor, const char* name, at::ScalarType dtype, at::IntArrayRef sizes) {
    TORCH_CHECK(tensor.sizes() == sizes, "sample_tokens: size mismatch: expected ", name, " ", sizes, ", got ", tensor.sizes());
    TORCH_CHECK(tensor.scalar_type() == dtype, "sample_tokens: expected dtype ", dtype, " of ", name, ", got ", tensor.scalar_type());
    TORCH_CHECK(tensor.is_contiguous() && tensor.device() == logits.device(), "sample_tokens: ", name, " must be contiguous and on ",
                logits.device());
  };
  check(logits, "logits", logits.scalar_type(), logits.sizes());
  check(source, "source", at::kInt, {n});
  check(slot, "slot", at::kInt, {n});
  check(forbidden, "forbidden", at::kInt, {setWords});
  check(stops, "stops", at::kInt, {setWords});
  check(x.key, "key", at::kInt, {S, 2});
  check(x.limit, "limit", at::kInt, {S});
  check(x.tokens, "tokens", at::kLong, {S});
  check(x.ropePositions, "rope_positions", at::kLong, {3, S});
  check(x.ownLength, "own_length", at::kInt, {S});
  check(x.done, "done", at::kInt, {S});
  check(x.ids, "ids", at::kInt, {S, N});
  check(x.logprobs, "logprobs", at::kFloat, {S, N});
  check(x.sampledLogprobs, "sampled_logprobs", at::kFloat, {S, N});
  check(x.entropies, "entropies", at::kFloat, {S, N});
}

// Draws for slot s from one row and advances it. The same steps as finishKernel's in kernels/sample_tokens.cu.
template <class T>
void advanceSlot(const T* logits, int64_t vocab, int64_t s, const int* stops, const Slots& x, const SamplingOptions& options) {
  const int64_t slots = x.ids.size(0), room = x.ids.size(1);
  int* ownLength = x.ownLength.mutable_data_ptr<int>() + s;
  int* done = x.done.mutable_data_ptr<int>() + s;
  const int position = *ownLength + 1;
  if (*done != 0 || position >= room) return;
  const int* key = x.key.const_data_ptr<int>() + 2 * s;
  const float u = philoxUniform(static_cast<uint32_t>(key[0]), static_cast<uint32_t>(key[1]), static_cast<uint32_t>(position));
  const SampledToken drawn = sampleRow(logits, vocab, u, options);
  const int64_t at = s * room + position;
  x.ids.mutable_data_ptr<int>()[at] = static_cast<int>(drawn.id);
  x.logprobs.mutable_data_ptr<float>()[at] = drawn.logprob;
  x.sampledLogprobs.mutable_data_ptr<float>()[at] = drawn.sampledLogprob;
  x.entropies.mutable_data_ptr<float>()[at] = drawn.entropy;
  x.tokens.mutable_data_ptr<int64_t>()[s] = drawn.id;
  for (int axis = 0; axis < 3; axis++) x.ropePositions.mutable_data_ptr<int64_t>()[axis * slots + s]++;
  *ownLength = position;
  *done = holds(stops, drawn.id) || position + 1 >= x.limit.const_data_ptr<int>()[s];
}

void sampleTokensCpu(const Tensor& logits, const Tensor& source, const Tensor& slot, const Tensor& forbidden, const Tensor& stops, const Tensor& key,
                     const Tensor& limit, Tensor& tokens, Tensor& rope_positions, Tensor& own_length, Tensor& done, Tensor& ids, Tensor& logprobs,
                     Tensor& sampled_logprobs, Tensor& entropies, double temperature, int64_t top_k, double top_p, bool greedy) {
  const Slots slots{key, limit, tokens, rope_positions, own_length, done, ids, logprobs, sampled_logprobs, entropies};
  checkArguments(logits, source, slot, forbidden, stops, slots, temperature, top_k, top_p);
  const SamplingOptions options{temperature, top_k, top_p, greedy, forbidden.const_data_ptr<int>()};
  const int *from = source.const_data_ptr<int>(), *to = slot.const_data_ptr<int>();
  const int64_t rows = logits.size(0), vocab = logits.size(1), S = ids.size(0);
  for (int64_t i = 0; i < slot.numel(); i++) {
    TORCH_CHECK(to[i] < 0 || (to[i] < S && from[i] >= 0 && from[i] < rows), "sample_tokens: draw ", i, " is from row ", from[i], " of ", rows,
                " for slot ", to[i], " of ", S);
  }
  const auto drawAll = [&](const auto* data) {
    at::parallel_for(0, slot.numel(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        if (to[i] >= 0) advanceSlot(data + from[i] * vocab, vocab, to[i], stops.const_data_ptr<int>(), slots, options);
      }
    });
  };
  if (logits.scalar_type() == at::kFloat) return drawAll(logits.const_data_ptr<float>());
  drawAll(logits.const_data_ptr<c10::BFloat16>());
}

#ifdef GROVE_CUDA
void sampleTokensCuda(const Tensor& logits, const Tensor& source, const Tensor& slot, const Tensor& forbidden, const Tensor& stops, const Tensor& key,
                      const Tensor& limit, Tensor& tokens, Tensor& rope_positions, Tensor& own_length, Tensor& done, Tensor& ids, Tensor& logprobs,
                      Tensor& sampled_logprobs, Tensor& entropies, double temperature, int64_t top_k, double top_p, bool greedy) {
  const Slots slots{key, limit, tokens, rope_positions, own_length, done, ids, logprobs, sampled_logprobs, entropies};
  checkArguments(logits, source, slot, forbidden, stops, slots, temperature, top_k, top_p);
  static const auto launch = reinterpret_cast<GroveSampleTokensLauncher>(kernelSymbol("grove_sample_tokens"));
  static const auto scratchFloats = reinterpret_cast<GroveSampleScratch>(kernelSymbol("grove_sample_scratch"));
  TORCH_CHECK(launch != nullptr && scratchFloats != nullptr, "sample_tokens: the library of CUDA kernels is not loaded");
  if (slot.numel() == 0) return;
  const int64_t scratchSize = scratchFloats(slot.numel(), logits.size(1));
  TORCH_CHECK(scratchSize > 0, "sample_tokens: a vocabulary of ", logits.size(1), " is too large");
  c10::cuda::CUDAGuard guard(logits.device());
  Tensor scratch = at::empty({scratchSize}, logits.options().dtype(at::kFloat));
  const int status = launch(
      logits.const_data_ptr(), logits.scalar_type() == at::kBFloat16, source.const_data_ptr<int>(), slot.const_data_ptr<int>(),
      forbidden.const_data_ptr<int>(), stops.const_data_ptr<int>(), key.const_data_ptr<int>(), limit.const_data_ptr<int>(),
      tokens.mutable_data_ptr<int64_t>(), rope_positions.mutable_data_ptr<int64_t>(), own_length.mutable_data_ptr<int>(),
      done.mutable_data_ptr<int>(), ids.mutable_data_ptr<int>(), logprobs.mutable_data_ptr<float>(), sampled_logprobs.mutable_data_ptr<float>(),
      entropies.mutable_data_ptr<float>(), scratch.mutable_data_ptr<float>(), static_cast<int>(slot.numel()), static_cast<int>(logits.size(1)),
      static_cast<int>(ids.size(0)), static_cast<int>(ids.size(1)), static_cast<float>(temperature),
      top_k < logits.size(1) ? static_cast<int>(top_k) : 0, static_cast<float>(top_p), greedy, c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_CHECK(static_cast<cudaError_t>(status));
}
#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, library) {
  library.def(
      "sample_tokens(Tensor logits, Tensor source, Tensor slot, Tensor forbidden, Tensor stops, Tensor key, Tensor limit, Tensor(a!) tokens, "
      "Tensor(b!) rope_positions, Tensor(c!) own_length, Tensor(d!) done, Tensor(e!) ids, Tensor(f!) logprobs, Tensor(g!) sampled_logprobs, "
      "Tensor(h!) entropies, float temperature, int top_k, float top_p, bool greedy) -> ()");
}
TORCH_LIBRARY_IMPL(grove, CPU, library) {
  library.impl("sample_tokens", sampleTokensCpu);
}
#ifdef GROVE_CUDA
TORCH_LIBRARY_IMPL(grove, CUDA, library) {
  library.impl("sample_tokens", sampleTokensCuda);
}
#endif

}  // namespace grove
