// grove::embedding(weight [V, X], ids int64 [T], replaced): weight[ids]. `replaced`: up to two ids whose rows the caller overwrites, so that no gradient
// reaches them.
//
// Autograd gives the whole table a gradient of its own, all zeros but for the few rows of `ids`, and adds that to `.grad`: for 152,064 x 3,584 in bfloat16
// 1 GiB beside the gradient, and a third of a percent of a step. Where gradients may be added in place (gradient.h) the rows are, on CUDA in bfloat16.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "cuda_operand.h"
#include "gradient.h"
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
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

#ifdef GROVE_CUDA
// Whether dout's rows have been added to the table's gradient.
bool addRows(const Tensor& weight, const Tensor& ids, at::IntArrayRef replaced, const Tensor& dout) {
  static const auto launch = reinterpret_cast<GroveAddRowsLauncher>(kernelSymbol("grove_add_rows"));
  if (launch == nullptr || !isPlain(weight) || !isPlain(dout) || dout.numel() == 0 || dout.size(1) % 8 != 0) return false;
  Tensor grad = accumulator(weight);
  if (!grad.defined() || !isPlain(grad)) return false;
  c10::cuda::CUDAGuard guard(dout.device());
  const auto [sorted, order] = at::sort(ids, std::optional<bool>(true), 0, false);  // stable, as the optional says: a bool would be taken for the dimension
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(sorted.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>(), dout.const_data_ptr(),
                                                 grad.mutable_data_ptr(), static_cast<int>(ids.size(0)), static_cast<int>(dout.size(1)),
                                                 replaced.size() > 0 ? replaced[0] : -1, replaced.size() > 1 ? replaced[1] : -1,
                                                 c10::cuda::getCurrentCUDAStream().stream())));
  return true;
}

struct Embedding : torch::autograd::Function<Embedding> {
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& ids, const std::vector<int64_t>& replaced) {
    ctx->save_for_backward({weight, ids});
    ctx->saved_data["replaced"] = replaced;
    return at::embedding(weight, ids);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &weight = saved[0], &ids = saved[1], dout = grads[0].contiguous();
    if (addRows(weight, ids, ctx->saved_data["replaced"].toIntVector(), dout)) return {{}, {}, {}};
    return {at::embedding_dense_backward(dout, ids, weight.size(0), -1, false), {}, {}};
  }
};
#endif

Tensor embedding(const Tensor& weight, const Tensor& ids, at::IntArrayRef replaced) {
  TORCH_CHECK(weight.dim() == 2 && ids.dim() == 1 && ids.scalar_type() == at::kLong && replaced.size() <= 2,
              "embedding: expected weight [V, X], ids [T] int64 and at most two ids, got ", weight.sizes(), ", ", ids.sizes(), " ", ids.scalar_type(),
              ", ", replaced);
#ifdef GROVE_CUDA
  if (weight.is_cuda() && at::GradMode::is_enabled() && weight.requires_grad()) return Embedding::apply(weight, ids, replaced.vec());
#endif
  return at::embedding(weight, ids);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Function above, or from ATen
  m.def("embedding(Tensor weight, Tensor ids, int[] replaced) -> Tensor", embedding);
}

}  // namespace grove
