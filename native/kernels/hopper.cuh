// Hopper's copy engine (TMA), its barriers in shared memory, and matrix products of a warpgroup (wgmma). Device code for sm_90a only.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
namespace {

__device__ __forceinline__ uint32_t sharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// A barrier of `count` arrivals; bytes that the copy engine was told to bring count too.
__device__ __forceinline__ void barrierInit(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedAddress(barrier)), "r"(count));
}
__device__ __forceinline__ void barrierInitDone() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedAddress(barrier)) : "memory");
}
__device__ __forceinline__ void barrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(
          sharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// The other block of a cluster of two: its shared memory at the same place as ours, and its barriers.
__device__ __forceinline__ uint32_t clusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// A barrier of all threads of the cluster, in two halves: what lies between them overlaps with the wait.
__device__ __forceinline__ void clusterArrive() { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
__device__ __forceinline__ void clusterWait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
__device__ __forceinline__ uint32_t addressIn(uint32_t rank, const void* p) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(sharedAddress(p)), "r"(rank));
  return address;
}
__device__ __forceinline__ void storeIn(uint32_t address, float4 value) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w) : "memory");
}
__device__ __forceinline__ void storeIn(uint32_t address, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
// What this thread has stored there is seen by who waits with barrierWaitCluster.
__device__ __forceinline__ void barrierArriveIn(uint32_t address) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
__device__ __forceinline__ void barrierWaitCluster(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(
          sharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// How long a cache line is wanted: weights are read once a step, activations by every block.
__device__ __forceinline__ uint64_t readOnce() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t readOften() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// A matrix of rows of 64-column slices, possibly in parts one behind the other, as a map has it: (column in the slice, row, part, slice). Brings the
// box at (0, row, 0, slice) to shared memory; zeros behind the matrix's end. `barrier` counts its bytes.
__device__ __forceinline__ void loadBox(void* to, const CUtensorMap* map, int row, int slice, uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(
          sharedAddress(to)),
      "l"(map), "r"(0), "r"(row), "r"(0), "r"(slice), "r"(sharedAddress(barrier)), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void prefetchMap(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// A matrix in shared memory as wgmma takes it: rows of 128 bytes along K, swizzled by 128 bytes, 1024 bytes from one group of eight rows to the
// next. Sixteen columns further is the descriptor plus 2.
__device__ __forceinline__ uint64_t matrixAt(const void* tile) {
  return static_cast<uint64_t>((sharedAddress(tile) & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

__device__ __forceinline__ void productsBegin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void productsCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most PENDING groups of products are under way.
template <int PENDING>
__device__ __forceinline__ void productsWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of the sums across asynchronous products.
template <int COUNT>
__device__ __forceinline__ void pin(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// d [64, N] += a [64, 16] b [N, 16]^T. A thread of the warpgroup holds rows 16 warp + lane / 4 (+ 8), columns 8 j + lane % 4 * 2 (+ 1) as
// d[4 j + 2 (row + 8) + column].
template <int N>
struct Product;
#define GROVE_D8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define GROVE_D16 GROVE_D8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define GROVE_D12 GROVE_D8 ",%8,%9,%10,%11"
#define GROVE_D20 GROVE_D16 ",%16,%17,%18,%19"
#define GROVE_D24 GROVE_D20 ",%20,%21,%22,%23"
#define GROVE_D28 GROVE_D20 ",%20,%21,%22,%23,%24,%25,%26,%27"
#define GROVE_D36 GROVE_D28 ",%28,%29,%30,%31,%32,%33,%34,%35"
#define GROVE_D56                                                                                                                          \
  GROVE_D36 ",%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55"
#define GROVE_D72                                                                                                                          \
  GROVE_D36 ",%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66," \
            "%67,%68,%69,%70,%71"
#define GROVE_R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GROVE_R8(d, i) GROVE_R4(d, i), GROVE_R4(d, i + 4)
#define GROVE_R16(d, i) GROVE_R8(d, i), GROVE_R8(d, i + 8)
#define GROVE_PRODUCT(N, LIST, A, B, ...)                                                                                               \
  template <>                                                                                                                           \
  struct Product<N> {                                                                                                                   \
    static __device__ __forceinline__ void add(float (&d)[N / 2], uint64_t a, uint64_t b) {                                              \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, %" #A ", %" #B ", 1, 1, 1, 0, 0;"                \
                   : __VA_ARGS__                                                                                                        \
                   : "l"(a), "l"(b));                                                                                                   \
    }                                                                                                                                   \
  };
GROVE_PRODUCT(24, GROVE_D12, 12, 13, GROVE_R8(d, 0), GROVE_R4(d, 8))
GROVE_PRODUCT(32, GROVE_D16, 16, 17, GROVE_R16(d, 0))
GROVE_PRODUCT(40, GROVE_D20, 20, 21, GROVE_R16(d, 0), GROVE_R4(d, 16))
GROVE_PRODUCT(48, GROVE_D24, 24, 25, GROVE_R16(d, 0), GROVE_R8(d, 16))
GROVE_PRODUCT(56, GROVE_D28, 28, 29, GROVE_R16(d, 0), GROVE_R8(d, 16), GROVE_R4(d, 24))
GROVE_PRODUCT(72, GROVE_D36, 36, 37, GROVE_R16(d, 0), GROVE_R16(d, 16), GROVE_R4(d, 32))
GROVE_PRODUCT(112, GROVE_D56, 56, 57, GROVE_R16(d, 0), GROVE_R16(d, 16), GROVE_R16(d, 32), GROVE_R8(d, 48))
GROVE_PRODUCT(144, GROVE_D72, 72, 73, GROVE_R16(d, 0), GROVE_R16(d, 16), GROVE_R16(d, 32), GROVE_R16(d, 48), GROVE_R8(d, 64))
#undef GROVE_PRODUCT

}  // namespace
#endif
