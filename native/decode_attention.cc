// grove::decode_attention: attention of one new token per completion, groups of completions sharing the keys and values of their prompt.
//
//   qkv [B, H + 2 HK, D]     the newest tokens' projections, not rotated: H query heads, then HK key and HK value heads
//   cos, sin [B, D]          their rotation, the first half of sin negated (src/model/rope.ts)
//   own_k, own_v             [S, N, HK, D], each completion's own tokens; the newest of slot s is written at own_length[s]
//   prompt_k, prompt_v       [T, HK, D], prompts one behind the other
//   rows [groups, G] int32   which completions belong to a group, -1 for none, in any place; a group may be empty
//   prompt_start, prompt_length [groups] int32; own_length [S] int32 (before this token)
//   chunk_keys [groups] int32: each prompt is attended to in chunks of so many keys (src/model/prompt-chunks.ts), at most `chunks` of them
//   slots [B] int32, optional: the slot of each row of qkv; without it row b has slot b
// Returns [B, H, D]: softmax(q [prompt keys | own keys, the newest included]^T scale) [values]; undefined for rows of no group.
//
// A completion's result depends on nothing but its own group's prompt, where that is cut, and its own tokens. Cut alike, it equals what
// grove::group_attention computes in training.
//
// On CUDA with bfloat16 and head sizes 64 and 128 this is our own kernels (kernels/decode_attention.cu), on the CPU with float32 and float64 a loop
// (decode_attention_cpu.cc). Anywhere else, and under the name decode_attention_composed everywhere, it is the composition of ATen operators
// below, slow and plain. Only the kernels care where chunks end.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "cuda_operand.h"
#include "decode_attention_cpu.h"
#include "kernels.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {
namespace {

using at::Tensor;

struct Sizes {
  int64_t rows, heads, kvHeads, headDim, ownSlots, groups, groupSize;
};

Sizes checkArguments(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& own_k, const Tensor& own_v, const Tensor& prompt_k,
                     const Tensor& prompt_v, const Tensor& rows, const Tensor& prompt_start, const Tensor& prompt_length,
                     const Tensor& chunk_keys, const Tensor& own_length, int64_t chunks, const std::optional<Tensor>& slots) {
  TORCH_CHECK(qkv.dim() == 3 && own_k.dim() == 4 && prompt_k.dim() == 3 && rows.dim() == 2,
              "decode_attention: expected qkv [B, H + 2 HK, D], own_k [B, N, HK, D], prompt_k [T, HK, D], rows [groups, G], got ",
              qkv.sizes(), ", ", own_k.sizes(), ", ", prompt_k.sizes(), ", ", rows.sizes());
  const int64_t B = qkv.size(0), HK = own_k.size(2), D = qkv.size(2), H = qkv.size(1) - 2 * HK;
  TORCH_CHECK(HK > 0 && H > 0 && H % HK == 0, "decode_attention: ", qkv.size(1), " heads of qkv do not fit ", HK, " key/value heads");
  TORCH_CHECK(D % 2 == 0, "decode_attention: a rotation takes heads of an even size, got ", D);
  const int64_t S = own_k.size(0);
  TORCH_CHECK((slots.has_value() ? slots->numel() == B : S >= B) && own_k.size(3) == D && own_v.sizes() == own_k.sizes() && prompt_k.size(1) == HK &&
                  prompt_k.size(2) == D && prompt_v.sizes() == prompt_k.sizes(),
              "decode_attention: sizes of own_k ", own_k.sizes(), ", own_v ", own_v.sizes(), ", prompt_k ", prompt_k.sizes(),
              " and prompt_v ", prompt_v.sizes(), " do not fit qkv ", qkv.sizes());
  TORCH_CHECK(cos.numel() == B * D && sin.numel() == B * D, "decode_attention: expected cos and sin [", B, ", ", D, "], got ", cos.sizes(),
              ", ", sin.sizes());
  const int64_t groups = rows.size(0);
  TORCH_CHECK(prompt_start.numel() == groups && prompt_length.numel() == groups && chunk_keys.numel() == groups && own_length.numel() == S,
              "decode_attention: expected prompt_start, prompt_length and chunk_keys [", groups, "], own_length [", S, "], got ",
              prompt_start.sizes(), ", ", prompt_length.sizes(), ", ", chunk_keys.sizes(), ", ", own_length.sizes());
  TORCH_CHECK(chunks >= 1 && chunks <= kGroveMaxPromptChunks, "decode_attention: chunks must be 1 to ", kGroveMaxPromptChunks, ", got ", chunks);
  const Tensor& slotOf = slots.has_value() ? *slots : rows;
  for (const Tensor* index : {&rows, &prompt_start, &prompt_length, &chunk_keys, &own_length, &slotOf}) {
    TORCH_CHECK(index->scalar_type() == at::kInt, "decode_attention: rows, lengths, chunk_keys and slots must be int32");
  }
  for (const Tensor* x : {&cos, &sin, &own_k, &own_v, &prompt_k, &prompt_v}) {
    TORCH_CHECK(x->scalar_type() == qkv.scalar_type(), "decode_attention: expected dtype ", qkv.scalar_type(), " throughout, got ",
                x->scalar_type());
  }
  for (const Tensor* x : {&qkv, &cos, &sin, &own_k, &own_v, &prompt_k, &prompt_v, &rows, &prompt_start, &prompt_length, &chunk_keys, &own_length,
                          &slotOf}) {
    TORCH_CHECK(x->is_contiguous() && x->device() == qkv.device(), "decode_attention: tensors must be contiguous and on one device");
  }
  return {B, H, HK, D, own_k.size(1), groups, rows.size(1)};
}

// The numbers in index tensors on the host, by which memory is addressed. A row of no group is free to be anything.
void checkIndices(const Sizes& s, const Tensor& own_k, const Tensor& prompt_k, const Tensor& rows, const Tensor& prompt_start,
                  const Tensor& prompt_length, const Tensor& own_length, const Tensor& slots) {
  const int *row = rows.const_data_ptr<int>(), *start = prompt_start.const_data_ptr<int>(), *length = prompt_length.const_data_ptr<int>(),
            *newest = own_length.const_data_ptr<int>(), *slot = slots.const_data_ptr<int>();
  const int64_t S = own_k.size(0), T = prompt_k.size(0);
  for (int64_t i = 0; i < s.groups * s.groupSize; i++) {
    const int b = row[i];
    const int64_t first = start[i / s.groupSize], count = length[i / s.groupSize];
    if (b < 0) continue;
    TORCH_CHECK(b < s.rows, "decode_attention: row ", b, " of ", s.rows);
    TORCH_CHECK(slot[b] >= 0 && slot[b] < S && newest[slot[b]] >= 0 && newest[slot[b]] < s.ownSlots, "decode_attention: row ", b, " in slot ",
                slot[b], " of ", S, ", whose own_length must be below ", s.ownSlots);
    TORCH_CHECK(first >= 0 && count >= 0 && first + count <= T, "decode_attention: prompt ", first, " + ", count, " of ", T, " tokens");
  }
}

Tensor composed(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor& own_k, Tensor& own_v, const Tensor& prompt_k,
                const Tensor& prompt_v, const Tensor& rows, const Tensor& prompt_start, const Tensor& prompt_length, const Tensor& chunk_keys,
                const Tensor& own_length, int64_t chunks, double scale, const std::optional<Tensor>& slots) {
  const Sizes s = checkArguments(qkv, cos, sin, own_k, own_v, prompt_k, prompt_v, rows, prompt_start, prompt_length, chunk_keys, own_length,
                                 chunks, slots);
  const auto wide = qkv.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor turning = qkv.narrow(1, 0, s.heads + s.kvHeads);
  const Tensor turned = at::addcmul(turning * cos.view({s.rows, 1, s.headDim}), turning.roll({s.headDim / 2}, {2}),
                                    sin.view({s.rows, 1, s.headDim}));
  const Tensor hostSlots = slots.has_value() ? slots->cpu() : at::arange(s.rows, at::kInt);
  const Tensor hostRows = rows.cpu(), start = prompt_start.cpu(), promptLength = prompt_length.cpu(), ownLength = own_length.cpu();
  checkIndices(s, own_k, prompt_k, hostRows, start, promptLength, ownLength, hostSlots);
  Tensor out = at::zeros({s.rows, s.heads, s.headDim}, qkv.options());
  for (int64_t g = 0; g < s.groups; g++) {
    const int64_t first = start.const_data_ptr<int>()[g], length = promptLength.const_data_ptr<int>()[g];
    for (int64_t i = 0; i < s.groupSize; i++) {
      const int64_t b = hostRows.const_data_ptr<int>()[g * s.groupSize + i];
      if (b < 0) continue;
      const int64_t slot = hostSlots.const_data_ptr<int>()[b], newest = ownLength.const_data_ptr<int>()[slot];
      own_k[slot][newest].copy_(turned[b].narrow(0, s.heads, s.kvHeads));
      own_v[slot][newest].copy_(qkv[b].narrow(0, s.heads + s.kvHeads, s.kvHeads));
      const auto all = [&](const Tensor& prompt, const Tensor& own) {  // [HK, keys, D]
        return at::cat({prompt.narrow(0, first, length), own[slot].narrow(0, 0, newest + 1)}).transpose(0, 1).to(wide);
      };
      const Tensor q = turned[b].narrow(0, 0, s.heads).view({s.kvHeads, s.heads / s.kvHeads, s.headDim}).to(wide);
      const Tensor weights = at::softmax(at::bmm(q, all(prompt_k, own_k).transpose(1, 2)) * scale, 2);
      out[b].copy_(at::bmm(weights, all(prompt_v, own_v)).view({s.heads, s.headDim}));
    }
  }
  return out;
}

Tensor onCpu(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor& own_k, Tensor& own_v, const Tensor& prompt_k,
             const Tensor& prompt_v, const Tensor& rows, const Tensor& prompt_start, const Tensor& prompt_length, const Tensor& chunk_keys,
             const Tensor& own_length, int64_t chunks, double scale, const std::optional<Tensor>& slots) {
  if (qkv.scalar_type() != at::kFloat && qkv.scalar_type() != at::kDouble) {
    return composed(qkv, cos, sin, own_k, own_v, prompt_k, prompt_v, rows, prompt_start, prompt_length, chunk_keys, own_length, chunks, scale,
                    slots);
  }
  const Sizes s =
      checkArguments(qkv, cos, sin, own_k, own_v, prompt_k, prompt_v, rows, prompt_start, prompt_length, chunk_keys, own_length, chunks, slots);
  checkIndices(s, own_k, prompt_k, rows, prompt_start, prompt_length, own_length, slots.has_value() ? *slots : at::arange(s.rows, at::kInt));
  return decode_attention_cpu(qkv, cos, sin, own_k, own_v, prompt_k, prompt_v, rows, prompt_start, prompt_length, own_length, scale, slots);
}

// Whether decode_attention is our own kernels on the current CUDA device for bfloat16 and this head size.
bool fits(int64_t headDim) {
#ifdef GROVE_CUDA
  const auto query = reinterpret_cast<GroveDecodeAttentionFits>(kernelSymbol("grove_decode_attention_fits"));
  return query != nullptr && query(static_cast<int>(headDim)) != 0;
#else
  return false;
#endif
}

#ifdef GROVE_CUDA
Tensor fused(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor& own_k, Tensor& own_v, const Tensor& prompt_k,
             const Tensor& prompt_v, const Tensor& rows, const Tensor& prompt_start, const Tensor& prompt_length, const Tensor& chunk_keys,
             const Tensor& own_length, int64_t chunks, double scale, const std::optional<Tensor>& slots) {
  const auto launch = reinterpret_cast<GroveDecodeAttentionLauncher>(kernelSymbol("grove_decode_attention"));
  const Sizes s = checkArguments(qkv, cos, sin, own_k, own_v, prompt_k, prompt_v, rows, prompt_start, prompt_length, chunk_keys, own_length,
                                 chunks, slots);
  if (launch == nullptr || qkv.scalar_type() != at::kBFloat16 || s.heads / s.kvHeads > 16 || !fits(s.headDim)) {
    return composed(qkv, cos, sin, own_k, own_v, prompt_k, prompt_v, rows, prompt_start, prompt_length, chunk_keys, own_length, chunks, scale,
                    slots);
  }
  for (const Tensor* x : std::initializer_list<const Tensor*>{&qkv, &cos, &sin, &own_k, &own_v, &prompt_k, &prompt_v}) {
    TORCH_CHECK(isAligned(*x), "decode_attention: tensors must begin at multiples of 16 bytes");
  }
  c10::cuda::CUDAGuard guard(qkv.device());
  const int64_t parts = (chunks + 1) * s.groups * s.groupSize * s.heads;
  Tensor out = at::empty({s.rows, s.heads, s.headDim}, qkv.options());
  Tensor partial = at::empty({parts, s.headDim}, qkv.options()), lse = at::empty({parts}, qkv.options().dtype(at::kFloat));
  const auto ints = [](const Tensor& x) { return x.const_data_ptr<int>(); };
  const int status = launch(qkv.const_data_ptr(), cos.const_data_ptr(), sin.const_data_ptr(), own_k.mutable_data_ptr(),
                            own_v.mutable_data_ptr(), prompt_k.const_data_ptr(), prompt_v.const_data_ptr(), ints(rows), ints(prompt_start),
                            ints(prompt_length), ints(chunk_keys), ints(own_length),
                            slots.has_value() ? ints(*slots) : nullptr, out.mutable_data_ptr(), partial.mutable_data_ptr(),
                            lse.mutable_data_ptr<float>(),
                            static_cast<int>(s.groups), static_cast<int>(s.groupSize), static_cast<int>(s.heads),
                            static_cast<int>(s.kvHeads), static_cast<int>(s.headDim), static_cast<int>(s.ownSlots),
                            static_cast<int>(chunks), static_cast<float>(scale), c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_CHECK(static_cast<cudaError_t>(status));
  return out;
}
#endif

constexpr const char* kSignature =
    "(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) own_k, Tensor(b!) own_v, Tensor prompt_k, Tensor prompt_v, Tensor rows, "
    "Tensor prompt_start, Tensor prompt_length, Tensor chunk_keys, Tensor own_length, int chunks, float scale, Tensor? slots=None) -> Tensor";

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, library) {
  library.def((std::string("decode_attention") + kSignature).c_str());
  library.def((std::string("decode_attention_composed") + kSignature).c_str());
  // a bool on the CPU, [], since every operator that is called by name returns tensors
  library.def("decode_attention_fits(int head_dim) -> Tensor", [](int64_t headDim) { return at::scalar_tensor(fits(headDim), at::kBool); });
}
TORCH_LIBRARY_IMPL(grove, CompositeExplicitAutograd, library) {
  library.impl("decode_attention_composed", composed);
}
TORCH_LIBRARY_IMPL(grove, CPU, library) {
  library.impl("decode_attention", onCpu);
}
#ifdef GROVE_CUDA
TORCH_LIBRARY_IMPL(grove, CUDA, library) {
  library.impl("decode_attention", fused);
}
#endif

}  // namespace grove
