// Low-rank adapters (LoRA, arXiv:2106.09685) beside products with frozen weights.
//
// grove::lora_add_(y [T, N], x [T, K], a [n r, K], b [M, r], spans, scale)   y[:, spans of i] += (scale x a_i^T) b_i^T, in place
// grove::swiglu(gate_up [T, 2 I])                                            silu(gate) * up, keeping gate_up alone for the backward
//
// One weight may be several projections side by side (q, k, v; gate, up). Projection i of n has r rows of a and takes columns [spans[2 i],
// spans[2 i + 1]) of y, as many rows of b; spans ascend and need not cover y.
//
// Autograd keeps x, which the frozen product's input is anyway, and the n r values a row between the factors. Sampler and trainer call the same
// operator. On CUDA in bfloat16 the products are kernels (kernels/lora_down.cu, lora_up.cu) whose result for a row does not depend on how many rows there
// are, as docs/decisions/0004-one-numeric-truth.md wants it; a library's may cut a sum over K with so few columns by the number of rows. Everywhere else, and
// for what the kernels do not take, they are ATen's.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "cuda_operand.h"
#include "gradient.h"
#include "kernels.h"
#include "pointwise.h"
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

struct Span {
  int64_t column, rows, row;  // of y, of b
};

std::vector<Span> spansOf(at::IntArrayRef spans) {
  std::vector<Span> result;
  int64_t row = 0;
  for (size_t i = 0; i + 1 < spans.size(); i += 2) {
    result.push_back({spans[i], spans[i + 1] - spans[i], row});
    row += spans[i + 1] - spans[i];
  }
  return result;
}

#ifdef GROVE_CUDA
// scale x a^T, rounded once; undefined where the kernel does not fit.
Tensor kernelDown(const Tensor& x, const Tensor& a, double scale) {
  static const auto launch = reinterpret_cast<GroveLoraDownLauncher>(kernelSymbol("grove_lora_down"));
  if (launch == nullptr || !isPlain(x) || !isPlain(a) || x.size(0) == 0 || x.size(1) % 32 != 0) return {};
  c10::cuda::CUDAGuard guard(x.device());
  Tensor t = at::empty({x.size(0), a.size(0)}, x.options());
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(x.const_data_ptr(), a.const_data_ptr(), t.mutable_data_ptr(), static_cast<int>(x.size(0)),
                                                 static_cast<int>(a.size(0)), static_cast<int>(x.size(1)), static_cast<float>(scale),
                                                 c10::cuda::getCurrentCUDAStream().stream())));
  return t;
}

// Whether the kernel has added t b^T to y.
bool kernelUp(const Tensor& y, const Tensor& t, const Tensor& b, const std::vector<Span>& spans) {
  static const auto launch = reinterpret_cast<GroveLoraUpLauncher>(kernelSymbol("grove_lora_up"));
  if (launch == nullptr || !isPlain(y) || !isPlain(t) || !isPlain(b) || y.size(0) == 0 || y.size(1) % 8 != 0 || b.size(1) % 2 != 0 ||
      spans.size() > kGroveMostLoraSpans)
    return false;
  GroveLoraSpans table = {static_cast<int>(spans.size()), {}, {}, {}};
  for (size_t i = 0; i < spans.size(); i++) {
    if (spans[i].column % 8 != 0 || spans[i].rows % 8 != 0) return false;
    table.column[i] = static_cast<int>(spans[i].column);
    table.columns[i] = static_cast<int>(spans[i].rows);
    table.row[i] = static_cast<int>(spans[i].row);
  }
  c10::cuda::CUDAGuard guard(y.device());
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(y.mutable_data_ptr(), t.const_data_ptr(), b.const_data_ptr(), &table, static_cast<int>(y.size(0)),
                                                 static_cast<int>(y.size(1)), static_cast<int>(b.size(1)),
                                                 c10::cuda::getCurrentCUDAStream().stream())));
  return true;
}
#else
Tensor kernelDown(const Tensor&, const Tensor&, double) { return {}; }
bool kernelUp(const Tensor&, const Tensor&, const Tensor&, const std::vector<Span>&) { return false; }
#endif

Tensor lowered(const Tensor& x, const Tensor& a, double scale) {
  const Tensor t = kernelDown(x, a, scale);
  return t.defined() ? t : at::mm(x, a.t()).mul_(scale);
}

void addUp(const Tensor& y, const Tensor& t, const Tensor& b, const std::vector<Span>& spans) {
  if (kernelUp(y, t, b, spans)) return;
  const int64_t r = b.size(1);
  int64_t i = 0;
  for (const auto& [column, rows, row] : spans) y.narrow(1, column, rows).addmm_(t.narrow(1, i++ * r, r), b.narrow(0, row, rows).t());
}

struct LoraAdd : torch::autograd::Function<LoraAdd> {
  static Tensor forward(AutogradContext* ctx, Tensor y, const Tensor& x, const Tensor& a, const Tensor& b, std::vector<int64_t> spans, double scale) {
    const Tensor t = lowered(x, a, scale);
    addUp(y, t, b, spansOf(spans));
    ctx->save_for_backward({x, a, b, t});
    ctx->saved_data["spans"] = spans;
    ctx->saved_data["scale"] = scale;
    ctx->mark_dirty({y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &a = saved[1], &b = saved[2], &t = saved[3], &dy = grads[0];
    const int64_t r = b.size(1);
    Tensor dt = at::empty_like(t), db = wants(ctx, 3) ? at::empty_like(b) : Tensor(), da, dx;
    int64_t i = 0;
    for (const auto& [column, rows, row] : spansOf(ctx->saved_data["spans"].toIntVector())) {
      const Tensor dySpan = dy.narrow(1, column, rows);
      dt.narrow(1, i * r, r).copy_(at::mm(dySpan, b.narrow(0, row, rows)));
      if (db.defined()) db.narrow(0, row, rows).copy_(at::mm(dySpan.t(), t.narrow(1, i * r, r)));
      i++;
    }
    dt.mul_(ctx->saved_data["scale"].toDouble());
    if (wants(ctx, 2)) da = weightGradient(a, dt, x);
    if (wants(ctx, 1)) dx = at::mm(dt, a);
    return {dy, dx, da, db, {}, {}};
  }
};

Tensor lora_add_(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b, at::IntArrayRef spans, double scale) {
  TORCH_CHECK(y.dim() == 2 && x.dim() == 2 && a.dim() == 2 && b.dim() == 2 && x.size(0) == y.size(0) && x.size(1) == a.size(1) &&
                  spans.size() % 2 == 0 && a.size(0) * 2 == static_cast<int64_t>(spans.size()) * b.size(1),
              "lora_add_: expected y [T, N], x [T, K], a [n r, K], b [M, r] and n spans, got ", y.sizes(), ", ", x.sizes(), ", ", a.sizes(), ", ",
              b.sizes(), ", ", spans);
  int64_t end = 0, rows = 0;
  for (const auto& span : spansOf(spans)) {
    TORCH_CHECK(span.column >= end && span.rows > 0, "lora_add_: expected spans that ascend, got ", spans);
    end = span.column + span.rows;
    rows += span.rows;
  }
  TORCH_CHECK(end <= y.size(1) && rows == b.size(0), "lora_add_: size mismatch: spans ", spans, " of y ", y.sizes(), " with b ", b.sizes());
  return LoraAdd::apply(y, x, a, b, spans.vec(), scale);
}

struct Swiglu : torch::autograd::Function<Swiglu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_up) {
    ctx->save_for_backward({gate_up});
    return grove::swiglu(gate_up);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {swiglu_backward(ctx->get_saved_variables()[0], grads[0].clone()).first};
  }
};

Tensor swiglu_op(const Tensor& gate_up) {
  TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "swiglu: expected gate_up [T, 2 I], got ", gate_up.sizes());
  return Swiglu::apply(gate_up);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Functions above
  m.def("lora_add_(Tensor(a!) y, Tensor x, Tensor a, Tensor b, int[] spans, float scale) -> Tensor(a!)", lora_add_);
  m.def("swiglu(Tensor gate_up) -> Tensor", swiglu_op);
}

}  // namespace grove
