// What follows a product of skinny_linear.cu before its sums become bfloat16: a bias, a residual or SwiGLU, each rounded where the operators of ATen
// round, and an adapter's product, rounded where grove_lora_up rounds it. All of it stands at the end of a launch with nothing else to do meanwhile, so
// it is made of little code and no waiting.
#pragma once

#include "hopper.cuh"
#include "lora_sums.cuh"

namespace {

enum Epilogue { kPlain = 0, kBias = 1, kResidual = 2, kSwiglu = 3 };  // as in native/kernels.h, where 4 is kResidual in halves

struct Arguments {
  const __nv_bfloat16* addend;  // bias [n], or residual [m, n]
  __nv_bfloat16* out;           // [m, n]
  int m, n, k;
  GroveLora lora;  // of ADAPTED products
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// Below it neither exp(-gate) nor the quotient of silu comes near the ends of float32's range.
constexpr float kOrdinaryGate = 64;

// gate / (1 + exp(-gate)) to the last bit, as `/` and __expf have it. ORDINARY gates are below kOrdinaryGate, or no number: then these are the steps
// that the compiler takes too, but without its tests and branches for each value.
template <bool ORDINARY>
__device__ __forceinline__ float silu(float gate) {
  if (!ORDINARY) return gate / (1.0f + __expf(-gate));
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(__fmul_rn(gate, -1.4426950216293334961f)));
  const float divisor = 1.0f + power;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(divisor));
  inverse = __fmaf_rn(inverse, __fmaf_rn(inverse, -divisor, 1.0f), inverse);
  float quotient = __fmul_rn(gate, inverse);
  quotient = __fmaf_rn(-inverse, __fmaf_rn(quotient, divisor, -gate), quotient);  // signs such that -0 stays -0
  return __fmaf_rn(-inverse, __fmaf_rn(quotient, divisor, -gate), quotient);
}

// Transposes words among four lanes: lane q returns word[q] of lanes 0 to 3.
__device__ __forceinline__ uint4 transposed(const uint32_t (&word)[4]) {
  uint32_t w[4] = {word[0], word[1], word[2], word[3]};
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & bit) continue;
      const uint32_t got = __shfl_xor_sync(~0u, upper ? w[i] : w[i | bit], bit);
      if (upper) w[i] = got;
      else w[i | bit] = got;
    }
  }
  return {w[0], w[1], w[2], w[3]};
}

// A thread's first row and its place among the two columns of four lanes: of 64 rows to a warpgroup.
__device__ __forceinline__ int rowOf(int firstRow) { return firstRow + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }

// What is added to a thread's sums, asked for before they are taken.
template <int WIDTH, int EPILOGUE, bool ADAPTED>
struct Addend {
  static constexpr int rows = EPILOGUE == kResidual ? 2 : EPILOGUE == kBias ? 1 : 0;
  static constexpr int parts = EPILOGUE == kSwiglu ? 2 : 1;
  __nv_bfloat162 pair[rows > 0 ? rows : 1][WIDTH / 8];
  LoraSums<WIDTH, parts, ADAPTED> adapter;  // laid out as the sums

  __device__ __forceinline__ void load(const Arguments& args, int firstRow, int firstColumn) {
#pragma unroll
    for (int half = 0; half < rows; half++) {
      const int m = rowOf(firstRow) + 8 * half;
      const __nv_bfloat16* from = args.addend + (EPILOGUE == kResidual ? static_cast<int64_t>(m) * args.n : 0);
#pragma unroll
      for (int g = 0; g < WIDTH / 8; g++) {
        const int n = firstColumn + 8 * g + threadIdx.x % 4 * 2;
        if (m < args.m && n < args.n) pair[half][g] = *reinterpret_cast<const __nv_bfloat162*>(from + n);
      }
    }
    adapter.take(args.lora, args.m, args.n, rowOf(firstRow), firstColumn);
  }
};

template <int WIDTH, int EPILOGUE, bool ADAPTED, bool ORDINARY, int SUMS>
__device__ __forceinline__ void storeTile(const Arguments& args, const float (&sum)[SUMS], const Addend<WIDTH, EPILOGUE, ADAPTED>& addend,
                                          int firstRow, int firstColumn, int2 groups) {
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int m = rowOf(firstRow) + 8 * half;
    __nv_bfloat16* out = args.out + static_cast<int64_t>(m) * args.n + firstColumn;
#pragma unroll
    for (int first = 0; first < WIDTH / 8; first += 4) {  // groups of eight columns, four at a time
      uint32_t word[4] = {};                              // of each, this lane's two columns
#pragma unroll
      for (int g = 0; g < 4 && first + g < WIDTH / 8; g++) {
        const int at = 4 * (first + g) + 2 * half;
        float2 value = {sum[at], sum[at + 1]};
        if constexpr (EPILOGUE == kBias) {
          const float2 bias = __bfloat1622float2(addend.pair[0][first + g]);
          value = {value.x + bias.x, value.y + bias.y};
        }
        if constexpr (EPILOGUE == kResidual) {  // rounded before the residual too, as aten::addmm does it
          const float2 residual = __bfloat1622float2(addend.pair[half][first + g]), product = rounded(value);
          value = {product.x + residual.x, product.y + residual.y};
        }
        if constexpr (EPILOGUE == kSwiglu) {  // rounded where silu and mul round
          const float2 gate = rounded(addend.adapter.addTo(value, at)), left = rounded({silu<ORDINARY>(gate.x), silu<ORDINARY>(gate.y)});
          const float2 right = rounded(addend.adapter.addTo({sum[WIDTH / 2 + at], sum[WIDTH / 2 + at + 1]}, WIDTH / 2 + at));
          value = {left.x * right.x, left.y * right.y};
        } else {
          value = addend.adapter.addTo(value, at);
        }
        const __nv_bfloat162 pair = __floats2bfloat162_rn(value.x, value.y);
        word[g] = *reinterpret_cast<const uint32_t*>(&pair);
      }
      const uint4 eight = transposed(word);
      const int group = first + q;
      if (m < args.m && firstColumn + 8 * group < args.n && group >= groups.x && group < groups.y) *reinterpret_cast<uint4*>(out + 8 * group) = eight;
    }
  }
}

// The results of a warp's 16 rows and a tile of WIDTH columns: of its groups of eight columns, those from groups.x up to groups.y. SwiGLU's sums are
// those of the gates, then those of the values. 16 bytes a store, so that sectors are written whole.
template <int WIDTH, int EPILOGUE, bool ADAPTED, int SUMS>
__device__ __forceinline__ void store(const Arguments& args, const float (&sum)[SUMS], const Addend<WIDTH, EPILOGUE, ADAPTED>& addend, int firstRow,
                                      int firstColumn, int2 groups) {
  if constexpr (EPILOGUE == kSwiglu) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) most = fmaxf(most, fabsf(sum[i]) + addend.adapter.size(i));
    if (__any_sync(~0u, most >= kOrdinaryGate)) return storeTile<WIDTH, EPILOGUE, ADAPTED, false>(args, sum, addend, firstRow, firstColumn, groups);
  }
  storeTile<WIDTH, EPILOGUE, ADAPTED, true>(args, sum, addend, firstRow, firstColumn, groups);
}

#endif

}  // namespace
