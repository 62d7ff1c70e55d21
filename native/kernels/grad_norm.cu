// grove_grad_norm: Euclidean norm of a flat buffer; see native/grad_norm.cc. Bound by memory: every element is read once. Each block sums the squares
// of one chunk, a second kernel adds up the chunks' sums; both in an order that does not depend on the device or on timing.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 65536;  // elements of a block

__device__ double blockSum(double x) {
  __shared__ double ofWarp[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  if (lane == 0) ofWarp[warp] = x;
  __syncthreads();
  x = lane < warps ? ofWarp[lane] : 0;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}

__device__ float widen(float x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Values that one 16-byte load brings; their squares are summed in float32, the rest in float64.
template <typename T>
struct alignas(16) Pack {
  T at[16 / sizeof(T)];
};

template <typename T>
__global__ void __launch_bounds__(kThreads) partialSums(const T* grad, int64_t n, double* partial) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t begin = blockIdx.x * kChunk, end = min(n, begin + kChunk);
  const int64_t packs = (end - begin) / kPack;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
    const Pack<T> pack = reinterpret_cast<const Pack<T>*>(grad + begin)[i];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kPack; k++) squares += widen(pack.at[k]) * widen(pack.at[k]);
    sum += squares;
  }
  for (int64_t i = begin + packs * kPack + threadIdx.x; i < end; i += kThreads) sum += widen(grad[i]) * widen(grad[i]);
  sum = blockSum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024) rootOfSum(const double* partial, int64_t chunks, float* norm) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) sum += partial[i];
  sum = blockSum(sum);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum));
}

}  // namespace

// Contracts: GroveGradNormLauncher and GroveGradNormScratch in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int64_t grove_grad_norm_scratch(int64_t n) { return (n + kChunk - 1) / kChunk; }

extern "C" __attribute__((visibility("default"))) int grove_grad_norm(const void* grad, int isBfloat16, int64_t n, double* partial, float* norm,
                                                                      void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const int64_t chunks = grove_grad_norm_scratch(n);
  if (chunks > 0 && isBfloat16) {
    partialSums<<<static_cast<unsigned>(chunks), kThreads, 0, on>>>(static_cast<const __nv_bfloat16*>(grad), n, partial);
  } else if (chunks > 0) {
    partialSums<<<static_cast<unsigned>(chunks), kThreads, 0, on>>>(static_cast<const float*>(grad), n, partial);
  }
  rootOfSum<<<1, 1024, 0, on>>>(partial, chunks, norm);
  return static_cast<int>(cudaGetLastError());
}
