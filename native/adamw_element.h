// What an AdamW update does to one element, and how moments are stored in fewer bits: the same code on the CPU and in kernels/adamw.cu, every
// operation rounded by itself (no fused multiply-add), so that both give the same bits.
//
// Moments of 8 bits: blocks of 256 neighbours share a float32 scale, the largest magnitude / 1.875; a code is a float of few bits, relative to it:
//   m   sign, 4 bits of exponent, 3 of mantissa: 2^-15 * 1.125 to 1.875, both signs, and 0
//   v         5 bits of exponent, 3 of mantissa: 2^-31 * 1.125 to 1.875, and 0
// Blocks with a scale and codes of uneven spacing are Dettmers et al., arXiv:2110.02861. It differs in three points. Codes are floats, not the paper's
// dynamic tree: their relative precision is the same over the whole range, and they need no table. Rounding is stochastic: in a step v changes by
// 1 - beta2 of itself, far less than the distance of two codes, so to nearest it would never decay. And a v above 0 never becomes 0, it is
// rounded up to the smallest code: dividing by sqrt(0) would make a huge step of what is left of m. The ranges belong together, 2^-15 squared is
// about 2^-31, so an m that is rounded up to the smallest code meets a v that is not smaller than its square.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define GROVE_BOTH __host__ __device__ __forceinline__
#else
#define GROVE_BOTH inline
#endif

namespace grove::adamw {

// Elements with a common scale. Parameters begin at multiples of it in flat buffers (src/trainer/flat-layout.ts).
constexpr int kBlock = 256;

struct Step {
  float beta1, gain1, beta2, gain2, eps;  // gain = 1 - beta, taken before rounding to float32
  float stepSize;                         // lr / (1 - beta1^t)
  float rsqrtCorrection2;                 // 1 / sqrt(1 - beta2^t)
  float decay;                            // lr * weight_decay, for parameters that decay
  float maxNorm;
  uint32_t update;                        // t, counted from 1
};

GROVE_BOTH uint32_t bitsOf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

GROVE_BOTH float floatOf(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Products and sums that the compiler may not contract.
GROVE_BOTH float times(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
GROVE_BOTH float plus(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// Float32 master of a bfloat16 weight and back; see adamw.cc.
GROVE_BOTH float joinMaster(uint16_t high, int16_t low) {
  return floatOf((static_cast<uint32_t>(high) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low)));
}
GROVE_BOTH void splitMaster(float master, uint16_t* high, int16_t* low) {
  const uint32_t bits = master != master ? 0x7fc00000u : bitsOf(master);  // rounding must not carry a NaN into another exponent
  *high = static_cast<uint16_t>((bits + 0x8000u) >> 16);
  *low = static_cast<int16_t>(bits & 0xffffu);
}

// Factor on gradients, as torch's clip_grad_norm_ takes it.
GROVE_BOTH float clipScale(float norm, float maxNorm) {
  const float scale = maxNorm / plus(norm, 1e-6f);
  return scale < 1 ? scale : 1;
}

GROVE_BOTH float updated(float p, float g, float& m, float& v, float decay, const Step& s) {
  m = plus(times(s.beta1, m), times(s.gain1, g));
  v = plus(times(s.beta2, v), times(times(s.gain2, g), g));
  const float denominator = plus(times(sqrtf(v), s.rsqrtCorrection2), s.eps);
  return plus(p, -plus(times(s.stepSize, m / denominator), times(decay, p)));
}

// Random words of four neighbours, Philox4x32-10 (src/rollout/philox.ts): key of the parameter, counter (index / 4 as two words, update, 0).
// The lower 16 bits of a word round m, the upper ones v.
struct Words {
  uint32_t at[4];
};
GROVE_BOTH Words randomWords(uint32_t key0, uint32_t key1, uint64_t quad, uint32_t update) {
  uint32_t a = static_cast<uint32_t>(quad), b = static_cast<uint32_t>(quad >> 32), c = update, d = 0;
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; round++) {
    const uint64_t left = uint64_t{0xd2511f53u} * a, right = uint64_t{0xcd9e8d57u} * c;
    a = static_cast<uint32_t>(right >> 32) ^ b ^ key0;
    c = static_cast<uint32_t>(left >> 32) ^ d ^ key1;
    b = static_cast<uint32_t>(right);
    d = static_cast<uint32_t>(left);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return {{a, b, c, d}};
}

// To one of the two bfloat16 around x, each as likely as x is near to it. random16: 16 bits.
GROVE_BOTH uint16_t roundBfloat16(float x, uint32_t random16) {
  return static_cast<uint16_t>(x != x ? 0x7fc0u : (bitsOf(x) + random16) >> 16);
}
GROVE_BOTH float fromBfloat16(uint16_t bits) { return floatOf(static_cast<uint32_t>(bits) << 16); }

constexpr float kLargest = 1.875f;     // of both codes
constexpr uint32_t kMeanZero = 112u << 3;    // code of m: bits of the float's exponent and mantissa, less these
constexpr uint32_t kSquareZero = 96u << 3;   // code of v
constexpr float kMeanSmallest = 1.125f * 0x1p-15f;
constexpr float kSquareSmallest = 1.125f * 0x1p-31f;

// Scale of a block whose largest magnitude this is: a normal number unless all is 0.
GROVE_BOTH float scaleOf(float largest) {
  const float scale = largest / kLargest;
  return largest == 0 ? 0 : scale < 0x1p-126f ? 0x1p-126f : scale;
}

// Code of x in [0, 1.875], at most `most`; 16 random bits, taken at the middle of what they leave open.
GROVE_BOTH uint32_t roundCode(float x, uint32_t zero, uint32_t most, uint32_t random16) {
  const uint32_t code = ((bitsOf(x) + (random16 << 4) + 8u) >> 20) - zero;
  return code < most ? code : most;
}

GROVE_BOTH uint8_t encodeMean(float m, float scale, uint32_t random16) {
  if (m == 0) return 0;
  const float x = fabsf(m) / scale;
  const uint32_t sign = m < 0 ? 0x80u : 0;
  if (x >= kMeanSmallest) return static_cast<uint8_t>(sign | roundCode(x, kMeanZero, 0x7fu, random16));
  const bool up = times(plus(static_cast<float>(random16), 0.5f), kMeanSmallest * 0x1p-16f) < x;
  return static_cast<uint8_t>(up ? sign | 1u : 0u);
}
GROVE_BOTH float decodeMean(uint8_t code, float scale) {
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0) return 0;
  return times(floatOf((static_cast<uint32_t>(code & 0x80u) << 24) | ((magnitude + kMeanZero) << 20)), scale);
}

GROVE_BOTH uint8_t encodeSquare(float v, float scale, uint32_t random16) {
  if (v == 0) return 0;
  const float x = v / scale;
  return static_cast<uint8_t>(x <= kSquareSmallest ? 1u : roundCode(x, kSquareZero, 0xffu, random16));
}
GROVE_BOTH float decodeSquare(uint8_t code, float scale) {
  return code == 0 ? 0 : times(floatOf((code + kSquareZero) << 20), scale);
}

}  // namespace grove::adamw
