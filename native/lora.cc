// Low-rank adapters (LoRA, arXiv:2106.09685) beside products with frozen weights.
//
// grove::lora_add_(y [T, N], x [T, K], a [n r, K], b [M, r], spans, scale)   y[:, spans of i] += (scale x a_i^T) b_i^T, in place
//
// One weight may be several projections side by side (q, k, v; gate, up). Projection i of n has r rows of a and takes columns [spans[2 i],
// spans[2 i + 1]) of y, as many rows of b; spans ascend and need not cover y.
//
// Autograd keeps x, which the frozen product's input is anyway, and the n r values a row between the factors. Sampler and trainer compute the same: on
// CUDA in bfloat16 the products are kernels (kernels/lora_down.cu, lora_up.cu) whose result for a row does not depend on how many rows there are, as
// docs/decisions/0004-one-numeric-truth.md wants it; a library's may cut a sum over K with so few columns by the number of rows. Everywhere else, and for
// what the kernels do not take, they are ATen's. Products and adapter in one operator: lora_linear.cc.
#include "lora.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "cuda_operand.h"
#include "gradient.h"
#include "runtime.h"

#ifdef GROVE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace grove {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

struct Span {
  int64_t column, rows, row;  // of y, of b
};

std::vector<Span> spansOf(const Lora& lora) {
  std::vector<Span> result;
  int64_t row = 0;
  for (size_t i = 0; i + 1 < lora.spans.size(); i += 2) {
    const int64_t rows = lora.spans[i + 1] - lora.spans[i];
    result.push_back({lora.spans[i], rows, row});
    row += rows;
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
bool kernelUp(const Tensor& y, const Tensor& t, const Lora& lora) {
  static const auto launch = reinterpret_cast<GroveLoraUpLauncher>(kernelSymbol("grove_lora_up"));
  if (launch == nullptr || !isPlain(y) || y.size(0) == 0) return false;
  const auto factors = kernelLora(t, lora, y.size(1));
  if (!factors) return false;
  c10::cuda::CUDAGuard guard(y.device());
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(y.mutable_data_ptr(), &*factors, static_cast<int>(y.size(0)), static_cast<int>(y.size(1)),
                                                 c10::cuda::getCurrentCUDAStream().stream())));
  return true;
}
#else
Tensor kernelDown(const Tensor&, const Tensor&, double) { return {}; }
bool kernelUp(const Tensor&, const Tensor&, const Lora&) { return false; }
#endif

}  // namespace

std::optional<GroveLora> kernelLora(const Tensor& t, const Lora& lora, int64_t N) {
  const auto spans = spansOf(lora);
  if (!isPlain(t) || !isPlain(lora.b) || N % 8 != 0 || lora.b.size(1) % 2 != 0 || spans.empty() || spans.size() > kGroveMostLoraSpans) return {};
  GroveLora factors = {t.const_data_ptr(), lora.b.const_data_ptr(), {static_cast<int>(spans.size()), {}, {}, {}}, static_cast<int>(lora.b.size(1))};
  for (size_t i = 0; i < spans.size(); i++) {
    if (spans[i].column % 8 != 0 || spans[i].rows % 8 != 0) return {};
    factors.spans.column[i] = static_cast<int>(spans[i].column);
    factors.spans.columns[i] = static_cast<int>(spans[i].rows);
    factors.spans.row[i] = static_cast<int>(spans[i].row);
  }
  return factors;
}

Tensor loraDown(const Tensor& x, const Lora& lora) {
  const Tensor t = kernelDown(x, lora.a, lora.scale);
  return t.defined() ? t : at::mm(x, lora.a.t()).mul_(lora.scale);
}

void loraUp(const Tensor& y, const Tensor& t, const Lora& lora) {
  if (kernelUp(y, t, lora)) return;
  const int64_t r = lora.b.size(1);
  int64_t i = 0;
  for (const auto& [column, rows, row] : spansOf(lora)) y.narrow(1, column, rows).addmm_(t.narrow(1, i++ * r, r), lora.b.narrow(0, row, rows).t());
}

LoraUpGradients loraUpBackward(const Tensor& dy, const Tensor& t, const Lora& lora, bool wantsB) {
  const int64_t r = lora.b.size(1);
  Tensor down = at::empty_like(t), grad = wantsB ? accumulator(lora.b) : Tensor();
  const Tensor db = wantsB && !grad.defined() ? at::empty_like(lora.b) : Tensor();
  int64_t i = 0;
  for (const auto& [column, rows, row] : spansOf(lora)) {
    const Tensor dySpan = dy.narrow(1, column, rows), tSpan = t.narrow(1, i * r, r);
    Tensor downSpan = down.narrow(1, i * r, r);
    at::mm_out(downSpan, dySpan, lora.b.narrow(0, row, rows));
    if (grad.defined()) grad.narrow(0, row, rows).addmm_(dySpan.t(), tSpan);
    if (db.defined()) {
      Tensor dbSpan = db.narrow(0, row, rows);
      at::mm_out(dbSpan, dySpan.t(), tSpan);
    }
    i++;
  }
  return {down.mul_(lora.scale), db};
}

void checkLora(const char* name, const Lora& lora, const Tensor& x, int64_t N) {
  const auto& [a, b, spans, scale] = lora;
  TORCH_CHECK(x.dim() == 2 && a.dim() == 2 && b.dim() == 2 && x.size(1) == a.size(1) && spans.size() % 2 == 0 &&
                  a.size(0) * 2 == static_cast<int64_t>(spans.size()) * b.size(1),
              name, ": expected x [T, K], a [n r, K], b [M, r] and n spans, got ", x.sizes(), ", ", a.sizes(), ", ", b.sizes(), ", ", spans);
  int64_t end = 0, rows = 0;
  for (const auto& span : spansOf(lora)) {
    TORCH_CHECK(span.column >= end && span.rows > 0, name, ": expected spans that ascend, got ", spans);
    end = span.column + span.rows;
    rows += span.rows;
  }
  TORCH_CHECK(end <= N && rows == b.size(0), name, ": size mismatch: spans ", spans, " of ", N, " columns with b ", b.sizes());
}

namespace {

struct LoraAdd : torch::autograd::Function<LoraAdd> {
  static Tensor forward(AutogradContext* ctx, Tensor y, const Tensor& x, const Tensor& a, const Tensor& b, std::vector<int64_t> spans, double scale) {
    const Lora lora{a, b, spans, scale};
    const Tensor t = loraDown(x, lora);
    loraUp(y, t, lora);
    ctx->save_for_backward({x, a, b, t});
    ctx->saved_data["spans"] = spans;
    ctx->saved_data["scale"] = scale;
    ctx->mark_dirty({y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &t = saved[3], &dy = grads[0];
    const Lora lora{saved[1], saved[2], ctx->saved_data["spans"].toIntVector(), ctx->saved_data["scale"].toDouble()};
    const auto [down, db] = loraUpBackward(dy, t, lora, wants(ctx, 3));
    return {dy, wants(ctx, 1) ? at::mm(down, lora.a) : Tensor(), wants(ctx, 2) ? weightGradient(lora.a, down, x) : Tensor(), db, {}, {}};
  }
};

Tensor lora_add_(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b, at::IntArrayRef spans, double scale) {
  TORCH_CHECK(y.dim() == 2 && x.dim() == 2 && x.size(0) == y.size(0), "lora_add_: expected y [T, N], x [T, K], got ", y.sizes(), ", ", x.sizes());
  checkLora("lora_add_", {a, b, spans.vec(), scale}, x, y.size(1));
  return LoraAdd::apply(y, x, a, b, spans.vec(), scale);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(grove, m) {  // composite: autograd comes from the Function above
  m.def("lora_add_(Tensor(a!) y, Tensor x, Tensor a, Tensor b, int[] spans, float scale) -> Tensor(a!)", lora_add_);
}

}  // namespace grove
