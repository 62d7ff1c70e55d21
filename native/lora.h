#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "kernels.h"

namespace grove {

// An adapter beside a product y [T, N] = x [T, K] W^T: a [n r, K], b [M, r], and of its n projections the columns of y that are their own, [begin, end),
// flat and ascending. See lora.cc.
struct Lora {
  at::Tensor a, b;
  std::vector<int64_t> spans;
  double scale;
};

// Throws unless the adapter is one for x and N columns.
void checkLora(const char* name, const Lora& lora, const at::Tensor& x, int64_t N);

// scale x a^T, [T, n r]
at::Tensor loraDown(const at::Tensor& x, const Lora& lora);

// y += t b^T, span by span, in place
void loraUp(const at::Tensor& y, const at::Tensor& t, const Lora& lora);

// t and b for a kernel that adds t b^T to columns of y, N of them; nothing where kernels do not take these.
std::optional<GroveLora> kernelLora(const at::Tensor& t, const Lora& lora, int64_t N);

// Given dy, what y += t b^T leaves to do: the gradient of x a^T, [T, n r], and where it is wanted that of b (undefined where it went to its `.grad`).
struct LoraUpGradients {
  at::Tensor down, b;
};
LoraUpGradients loraUpBackward(const at::Tensor& dy, const at::Tensor& t, const Lora& lora, bool wantsB);

}  // namespace grove
