// Element by element parts of a layer, each one pass over its operands in 16-byte accesses: SwiGLU, quick GELU, rotary embedding (meaning and
// rounding: native/pointwise.cc), the end of a product that is summed in float32 (native/skinny_linear.cc).
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "bfloat16_vector.cuh"
#include "rotary_table.cuh"

namespace {

constexpr int kThreads = 256;

// gate_up: rows of [gate | up], `vectors` of eight each.
__global__ void __launch_bounds__(kThreads) swiglu(const Eight* gateUp, Eight* out, int64_t count, int vectors) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  const int64_t from = at / vectors * 2 * vectors + at % vectors;
  const Eight gate = gateUp[from], up = gateUp[from + vectors];
  Eight result;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float g = wide(gate.at[i]);
    result.at[i] = narrow(rounded(g / (1.0f + __expf(-g))) * wide(up.at[i]));
  }
  out[at] = result;
}

// Of product = silu(gate) up: the gradient of gate and up, and the product again.
__global__ void __launch_bounds__(kThreads)
    swigluBackward(const Eight* gateUp, const Eight* dProduct, Eight* dGateUp, Eight* product, int64_t count, int vectors) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  const int64_t from = at / vectors * 2 * vectors + at % vectors;
  const Eight gate = gateUp[from], up = gateUp[from + vectors], d = dProduct[at];
  Eight dGate, dUp, result;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float g = wide(gate.at[i]), u = wide(up.at[i]), dp = wide(d.at[i]);
    const float sigmoid = 1.0f / (1.0f + __expf(-g)), silu = rounded(g * sigmoid);
    result.at[i] = narrow(silu * u);
    dUp.at[i] = narrow(dp * silu);
    dGate.at[i] = narrow(dp * u * sigmoid * (1.0f + g * (1.0f - sigmoid)));
  }
  product[at] = result;
  dGateUp[from] = dGate;
  dGateUp[from + vectors] = dUp;
}

// x sigmoid(1.702 x), or with `dOut` its gradient dOut (s + 1.702 x s (1 - s)).
__global__ void __launch_bounds__(kThreads) quickGelu(const Eight* x, const Eight* dOut, Eight* out, int64_t count) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  const Eight values = x[at];
  const Eight d = dOut == nullptr ? Eight{} : dOut[at];
  Eight result;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float v = wide(values.at[i]), s = 1.0f / (1.0f + __expf(-1.702f * v));
    result.at[i] = narrow(dOut == nullptr ? v * s : wide(d.at[i]) * (s + 1.702f * v * s * (1.0f - s)));
  }
  out[at] = result;
}

// A sum in float32 becomes what aten::addmm gives in bfloat16: rounded, and rounded again with the residual.
__global__ void __launch_bounds__(kThreads) addRounded(const float4* sum, const Eight* residual, Eight* out, int64_t count) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  const float4 a = sum[2 * at], b = sum[2 * at + 1];
  const float sums[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  const Eight add = residual[at];
  Eight result;
#pragma unroll
  for (int i = 0; i < 8; i++) result.at[i] = narrow(rounded(sums[i]) + wide(add.at[i]));
  out[at] = result;
}

// x cos + roll(x) sin for every head of x [tokens, heads, D]; `backward`: the same map transposed. A thread takes eight values of the first half
// of a head and those half a head away. rowStride: values from one token of x to the next.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rotateHeads(const __nv_bfloat16* x, const T* cosines, const T* sines, __nv_bfloat16* out, int64_t count, int heads, int D, int64_t rowStride,
                bool backward) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  const int pieces = D / 16, c = static_cast<int>(at % pieces) * 8;
  const int64_t head = at / pieces, token = head / heads;
  const __nv_bfloat16* from = x + token * rowStride + head % heads * D + c;
  const Eight low = *reinterpret_cast<const Eight*>(from), high = *reinterpret_cast<const Eight*>(from + D / 2);
  float a[8], b[8];
#pragma unroll
  for (int i = 0; i < 8; i++) a[i] = wide(low.at[i]), b[i] = wide(high.at[i]);
  Eight newLow, newHigh;
  turn<T>(a, b, cosines + token * D, sines + token * D, c, D, backward, newLow, newHigh);
  __nv_bfloat16* to = out + head * D + c;
  *reinterpret_cast<Eight*>(to) = newLow;
  *reinterpret_cast<Eight*>(to + D / 2) = newHigh;
}

unsigned blocks(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

}  // namespace

// The launchers; their contracts are in native/kernels.h.
#define GROVE_LAUNCHER extern "C" __attribute__((visibility("default"))) int

GROVE_LAUNCHER grove_swiglu(const void* gateUp, void* out, int64_t rows, int columns, void* stream) {
  const int64_t count = rows * columns / 8;
  swiglu<<<blocks(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<const Eight*>(gateUp), static_cast<Eight*>(out), count,
                                                                           columns / 8);
  return static_cast<int>(cudaGetLastError());
}

GROVE_LAUNCHER grove_swiglu_backward(const void* gateUp, const void* dProduct, void* dGateUp, void* product, int64_t rows, int columns,
                                     void* stream) {
  const int64_t count = rows * columns / 8;
  swigluBackward<<<blocks(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const Eight*>(gateUp), static_cast<const Eight*>(dProduct), static_cast<Eight*>(dGateUp), static_cast<Eight*>(product), count,
      columns / 8);
  return static_cast<int>(cudaGetLastError());
}

GROVE_LAUNCHER grove_quick_gelu(const void* x, const void* dOut, void* out, int64_t numel, void* stream) {
  quickGelu<<<blocks(numel / 8), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<const Eight*>(x), static_cast<const Eight*>(dOut),
                                                                                  static_cast<Eight*>(out), numel / 8);
  return static_cast<int>(cudaGetLastError());
}

GROVE_LAUNCHER grove_add_rounded(const float* sum, const void* residual, void* out, int64_t numel, void* stream) {
  addRounded<<<blocks(numel / 8), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<const float4*>(sum), static_cast<const Eight*>(residual), static_cast<Eight*>(out), numel / 8);
  return static_cast<int>(cudaGetLastError());
}

GROVE_LAUNCHER grove_rotate(const void* x, const void* cosines, const void* sines, int tableIsBfloat16, void* out, int64_t tokens, int heads,
                            int headDim, int64_t rowStride, int backward, void* stream) {
  using Half = __nv_bfloat16;
  const int64_t count = tokens * heads * (headDim / 16);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (tableIsBfloat16) {
    rotateHeads<<<blocks(count), kThreads, 0, on>>>(static_cast<const Half*>(x), static_cast<const Half*>(cosines), static_cast<const Half*>(sines),
                                                   static_cast<Half*>(out), count, heads, headDim, rowStride, backward != 0);
  } else {
    rotateHeads<<<blocks(count), kThreads, 0, on>>>(static_cast<const Half*>(x), static_cast<const float*>(cosines),
                                                   static_cast<const float*>(sines), static_cast<Half*>(out), count, heads, headDim, rowStride,
                                                   backward != 0);
  }
  return static_cast<int>(cudaGetLastError());
}
