// grove_adamw: one AdamW step over flat buckets; the formulas and the split master are explained in native/adamw.cc, whose
// composition of ATen ops is the oracle (test/torch/adamw.gpu.test.ts).
// Bound by memory: 26 bytes an element are moved for a split master with bfloat16 gradients, 28 for float32 with float32 ones. Hence
// four elements a thread, in 8- and 16-byte accesses, each state read and written once.
//
// nvcc -O3 -gencode=arch=compute_90a,code=sm_90a -shared -Xcompiler -fPIC adamw.cu -o libgrove_kernels.so
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

struct Step {
  float decay, beta1, gain1, beta2, gain2, eps, stepSize, rsqrtCorrection2;
};

template <typename T>
struct alignas(4 * sizeof(T)) Pack {  // four neighbours in one access
  T at[4];
};

__device__ float joinMaster(uint16_t high, int16_t low) {
  return __uint_as_float((static_cast<uint32_t>(high) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low)));
}

__device__ void splitMaster(float master, uint16_t* high, int16_t* low) {
  uint32_t bits = isnan(master) ? 0x7fc00000u : __float_as_uint(master);
  *high = static_cast<uint16_t>((bits + 0x8000u) >> 16);
  *low = static_cast<int16_t>(bits & 0xffffu);
}

__device__ float updated(float p, float g, float& m, float& v, const Step& s) {
  m = s.beta1 * m + s.gain1 * g;
  v = s.beta2 * v + s.gain2 * g * g;
  float denominator = sqrtf(v) * s.rsqrtCorrection2 + s.eps;
  return p * s.decay - s.stepSize * (m / denominator);
}

__device__ float toFloat(float x) { return x; }
__device__ float toFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

// One element, for the tail and for buckets that are not aligned.
template <typename G, bool Split>
__device__ void updateOne(void* param, const G* grad, int16_t* low, float* m, float* v, float scale, int64_t i, const Step& s) {
  float g = toFloat(grad[i]) * scale;
  if (Split) {
    uint16_t* high = static_cast<uint16_t*>(param);
    splitMaster(updated(joinMaster(high[i], low[i]), g, m[i], v[i], s), &high[i], &low[i]);
  } else {
    float* p = static_cast<float*>(param);
    p[i] = updated(p[i], g, m[i], v[i], s);
  }
}

template <typename G, bool Split>
__global__ void adamwKernel(void* param, const G* grad, int16_t* low, float* m, float* v, const float* gradScale, int64_t n,
                            int64_t packs, Step s) {
  const float scale = *gradScale;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = first; i < packs; i += stride) {
    Pack<G> g = reinterpret_cast<const Pack<G>*>(grad)[i];
    Pack<float> mean = reinterpret_cast<Pack<float>*>(m)[i];
    Pack<float> square = reinterpret_cast<Pack<float>*>(v)[i];
    if (Split) {
      Pack<uint16_t> high = reinterpret_cast<Pack<uint16_t>*>(param)[i];
      Pack<int16_t> rest = reinterpret_cast<Pack<int16_t>*>(low)[i];
#pragma unroll
      for (int k = 0; k < 4; k++) {
        float p = updated(joinMaster(high.at[k], rest.at[k]), toFloat(g.at[k]) * scale, mean.at[k], square.at[k], s);
        splitMaster(p, &high.at[k], &rest.at[k]);
      }
      reinterpret_cast<Pack<uint16_t>*>(param)[i] = high;
      reinterpret_cast<Pack<int16_t>*>(low)[i] = rest;
    } else {
      Pack<float> p = reinterpret_cast<Pack<float>*>(param)[i];
#pragma unroll
      for (int k = 0; k < 4; k++) p.at[k] = updated(p.at[k], toFloat(g.at[k]) * scale, mean.at[k], square.at[k], s);
      reinterpret_cast<Pack<float>*>(param)[i] = p;
    }
    reinterpret_cast<Pack<float>*>(m)[i] = mean;
    reinterpret_cast<Pack<float>*>(v)[i] = square;
  }
  for (int64_t i = 4 * packs + first; i < n; i += stride) updateOne<G, Split>(param, grad, low, m, v, scale, i, s);
}

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

template <typename G, bool Split>
int launch(void* param, const void* grad, int16_t* low, float* m, float* v, const float* gradScale, int64_t n, Step s,
           cudaStream_t stream) {
  const bool packable = aligned(param, Split ? 8 : 16) && aligned(grad, 4 * sizeof(G)) && aligned(m, 16) && aligned(v, 16) &&
                        (!Split || aligned(low, 8));
  const int64_t packs = packable ? n / 4 : 0;
  const int threads = 256;
  const int64_t work = packable ? packs + 4 : n;
  const int64_t blocks = (work + threads - 1) / threads;
  const int64_t limit = 1 << 16;  // the loop strides on beyond
  adamwKernel<G, Split><<<static_cast<unsigned>(blocks < limit ? blocks : limit), threads, 0, stream>>>(
      param, static_cast<const G*>(grad), low, m, v, gradScale, n, packs, s);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

// The launcher; its contract is GroveAdamwLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_adamw(void* param, const void* grad, int gradIsBfloat16, int16_t* low,
                                                                  float* m, float* v, const float* gradScale, int64_t n,
                                                                  float decay, float beta1, float gain1, float beta2, float gain2,
                                                                  float eps, float stepSize, float rsqrtCorrection2, void* stream) {
  const Step s{decay, beta1, gain1, beta2, gain2, eps, stepSize, rsqrtCorrection2};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (low != nullptr) {
    return gradIsBfloat16 ? launch<__nv_bfloat16, true>(param, grad, low, m, v, gradScale, n, s, on)
                          : launch<float, true>(param, grad, low, m, v, gradScale, n, s, on);
  }
  return gradIsBfloat16 ? launch<__nv_bfloat16, false>(param, grad, low, m, v, gradScale, n, s, on)
                        : launch<float, false>(param, grad, low, m, v, gradScale, n, s, on);
}
