// grove::decode_attention on the CPU, float32 and float64.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace grove {

// Arguments as in decode_attention.cc, checked there. Rows of no group are zero. slots [B] int32: whose own keys, values and own_length a row of qkv has;
// without it, row b those of slot b.
at::Tensor decode_attention_cpu(const at::Tensor& qkv, const at::Tensor& cos, const at::Tensor& sin, at::Tensor& own_k, at::Tensor& own_v,
                                const at::Tensor& prompt_k, const at::Tensor& prompt_v, const at::Tensor& rows, const at::Tensor& prompt_start,
                                const at::Tensor& prompt_length, const at::Tensor& own_length, double scale,
                                const std::optional<at::Tensor>& slots = std::nullopt);

}  // namespace grove
