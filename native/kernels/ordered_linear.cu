// grove_ordered_linear: out = x W^T + residual for at most 128 rows, every sum over K taken in order. Why, and what it is compared with:
// native/ordered_linear.cc. Hopper only.
//
// W is the left factor of the matrix units (64 of its rows a block), the rows of x are the right one: wgmma needs 64 rows on the left, and a
// decode step has few. Slices of both stream through a ring of shared memory, filled by the copy engine (TMA); one producer warp, one consumer
// warpgroup. Bound by reading W: 2.8 TB/s of it with 56 blocks, which is what 56 multiprocessors take in.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int kTileN = 64;   // rows of W a block
constexpr int kSwizzle = 64;  // columns of one copy: 128 bytes, a swizzle row
constexpr int kTileK = 128;  // columns of a stage: two copies of each factor
constexpr int kConsumers = 128;

struct Arguments {
  const __nv_bfloat16* residual;  // [M, N]
  __nv_bfloat16* out;             // [M, N]
  int m, n, k;
};

template <int MT>
constexpr int kStageBytes = (kTileN + MT) * kTileK * 2;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ uint32_t smemAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrierInit(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(smemAddress(barrier)));
}
__device__ __forceinline__ void barrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smemAddress(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smemAddress(barrier)) : "memory");
}
__device__ __forceinline__ void barrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(
          smemAddress(barrier)),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void loadTile(void* to, const CUtensorMap* map, int k, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(smemAddress(to)),
      "l"(map), "r"(k), "r"(row), "r"(smemAddress(barrier))
      : "memory");
}

// Rows of 128 bytes along K, swizzled by 128 bytes: 1024 bytes from one group of eight rows to the next.
__device__ __forceinline__ uint64_t descriptor(const void* tile) {
  return static_cast<uint64_t>((smemAddress(tile) & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// d [64 rows of W, N rows of x] += W [64, 16] x^T [16, N]
template <int N>
struct Wgmma;
#define GROVE_R8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
template <>
struct Wgmma<64> {
  static __device__ __forceinline__ void run(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "%32, %33, 1, 1, 1, 0, 0;"
        : GROVE_R8(d, 0), GROVE_R8(d, 8), GROVE_R8(d, 16), GROVE_R8(d, 24)
        : "l"(a), "l"(b));
  }
};
template <>
struct Wgmma<128> {
  static __device__ __forceinline__ void run(float (&d)[64], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "%64, %65, 1, 1, 1, 0, 0;"
        : GROVE_R8(d, 0), GROVE_R8(d, 8), GROVE_R8(d, 16), GROVE_R8(d, 24), GROVE_R8(d, 32), GROVE_R8(d, 40), GROVE_R8(d, 48),
          GROVE_R8(d, 56)
        : "l"(a), "l"(b));
  }
};
#undef GROVE_R8

// Keeps the compiler from moving uses of the sums across the asynchronous products.
template <int COUNT>
__device__ __forceinline__ void pin(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#endif

template <int MT, int STAGES>
__global__ void __launch_bounds__(kConsumers + 32, 1)
    orderedLinear(const __grid_constant__ CUtensorMap mapW, const __grid_constant__ CUtensorMap mapX, const Arguments args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ uint8_t memory[];
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + 1023) & ~uintptr_t{1023});
  __shared__ uint64_t full[STAGES], empty[STAGES];
  const int slices = args.k / kTileK, tile = blockIdx.x;
  const auto stageW = [&](int s, int half) { return ring + s * kStageBytes<MT> + half * kTileN * 128; };
  const auto stageX = [&](int s, int half) { return ring + s * kStageBytes<MT> + 2 * kTileN * 128 + half * MT * 128; };
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrierInit(&full[s]);
      barrierInit(&empty[s]);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (threadIdx.x >= kConsumers) {  // the producer
    if (threadIdx.x > kConsumers) return;
    for (int i = 0; i < slices; i++) {
      const int s = i % STAGES;
      if (i >= STAGES) barrierWait(&empty[s], (i / STAGES - 1) & 1);
      barrierExpect(&full[s], kStageBytes<MT>);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int k = i * kTileK + half * kSwizzle;
        loadTile(stageW(s, half), &mapW, k, tile * kTileN, &full[s]);
        loadTile(stageX(s, half), &mapX, k, 0, &full[s]);
      }
    }
    return;
  }

  float sum[MT / 2];
#pragma unroll
  for (int i = 0; i < MT / 2; i++) sum[i] = 0;
  for (int i = 0; i < slices; i++) {
    const int s = i % STAGES;
    barrierWait(&full[s], i / STAGES & 1);
    pin(sum);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint64_t a = descriptor(stageW(s, half)), b = descriptor(stageX(s, half));
#pragma unroll
      for (int k = 0; k < kSwizzle / 16; k++) Wgmma<MT>::run(sum, a + 2 * k, b + 2 * k);  // 16 columns are 32 bytes
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");  // the products before these are done: their buffer is free
    if (i > 0 && threadIdx.x == 0) barrierArrive(&empty[(i - 1) % STAGES]);
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  pin(sum);

  // sum[4 j + e] is row `row` (e < 2) or `row` + 8 of the 64, row 8 j + column + (e & 1) of x.
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < MT / 8; j++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int m = 8 * j + column + (e & 1), n = tile * kTileN + row + (e >= 2 ? 8 : 0);
      if (m >= args.m || n >= args.n) continue;
      const int64_t index = static_cast<int64_t>(m) * args.n + n;
      __nv_bfloat16 value = __float2bfloat16_rn(sum[4 * j + e]);
      // rounded before the residual too, as aten::addmm does it
      value = __float2bfloat16_rn(__bfloat162float(value) + __bfloat162float(args.residual[index]));
      args.out[index] = value;
    }
  }
#endif
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                            const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A row-major [rows, k] matrix, copied in boxes of `box` rows and 64 columns; zeros behind its end.
bool describe(CUtensorMap* map, const void* data, int rows, int k, int box) {
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return status == cudaSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (encode == nullptr) return false;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)}, strides[1] = {static_cast<cuuint64_t>(k) * 2};
  const cuuint32_t boxes[2] = {kSwizzle, static_cast<cuuint32_t>(box)}, steps[2] = {1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, boxes, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <int MT, int STAGES>
int launch(const void* x, const void* w, const Arguments& args, cudaStream_t stream) {
  CUtensorMap mapW, mapX;
  if (!describe(&mapW, w, args.n, args.k, kTileN) || !describe(&mapX, x, args.m, args.k, MT)) return static_cast<int>(cudaErrorInvalidValue);
  const int bytes = STAGES * kStageBytes<MT> + 1024;
  const cudaError_t status = cudaFuncSetAttribute(orderedLinear<MT, STAGES>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return static_cast<int>(status);
  orderedLinear<MT, STAGES><<<(args.n + kTileN - 1) / kTileN, kConsumers + 32, bytes, stream>>>(mapW, mapX, args);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

// The launcher; its contract is GroveOrderedLinearLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_ordered_linear(const void* x, const void* w, const void* residual, void* out,
                                                                           int m, int n, int k, void* stream) {
  int device = 0, major = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) return static_cast<int>(status);
  if (major != 9) return -1;  // kGroveNotOnThisDevice
  const Arguments args{static_cast<const __nv_bfloat16*>(residual), static_cast<__nv_bfloat16*>(out), m, n, k};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return m <= 64 ? launch<64, 6>(x, w, args, on) : launch<128, 4>(x, w, args, on);
}
