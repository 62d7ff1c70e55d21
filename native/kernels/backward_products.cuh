// The matrix products of an attention's backward (group_attention_backward.cu), 64 rows a warpgroup: operands that lie transposed in shared memory, and
// left operands in registers. Device code for sm_90a only.
#pragma once

#include "hopper.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
namespace {

#define GROVE_ACC8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define GROVE_ACC32(d, i) GROVE_ACC8(d, i), GROVE_ACC8(d, i + 8), GROVE_ACC8(d, i + 16), GROVE_ACC8(d, i + 24)
#define GROVE_LIST32                                                                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define GROVE_LIST64                                                                                                                       \
  GROVE_LIST32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61," \
               "%62,%63"

// d [64, 64] = (ADDS: d +) a [64, 16] b [16, 64], both in shared memory: TRANSPOSED 0: a by rows and b by columns, 1: a by columns and b by rows.
template <bool ADDS, int TRANSPOSED>
__device__ __forceinline__ void addProduct(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" GROVE_LIST32 "}, %32, %33, %34, 1, 1, %35, %35;"
               : GROVE_ACC32(d, 0)
               : "l"(a), "l"(b), "n"(ADDS), "n"(TRANSPOSED));
}

// d [64, 128] += a [64, 16] b [16, 128]: a in registers as a product leaves it, rounded, b by rows in shared memory.
__device__ __forceinline__ void addProduct(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" GROVE_LIST64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : GROVE_ACC32(d, 0), GROVE_ACC32(d, 32)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// A matrix as matrixAt describes it, taken along its columns; two blocks of 64 columns lie `apart` bytes from each other.
__device__ __forceinline__ uint64_t columnsAt(const void* tile, uint32_t apart) {
  return static_cast<uint64_t>((sharedAddress(tile) & 0x3ffff) >> 4) | (static_cast<uint64_t>(apart >> 4) << 16) | (64ull << 32) | (1ull << 62);
}

// Four matrices of 8 x 8 values; lane i says where row i % 8 of matrix i / 8 goes.
__device__ __forceinline__ void storeMatrices(uint32_t address, const uint32_t* a) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
               : "memory");
}

// What this thread has written to shared memory is seen by products and copies that start after the next barrier.
__device__ __forceinline__ void showToEngines() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of THREADS threads; 0 is that of the whole block.
template <int THREADS>
__device__ __forceinline__ void meet(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
}

template <int REGISTERS>
__device__ __forceinline__ void takeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void giveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

__device__ __forceinline__ void addAt(float* to, float x, float y, float z, float w) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}

// Has the copy engine add `bytes` of float32 in shared memory to global memory, once what was written there is shown to it; one thread.
__device__ __forceinline__ void addFrom(float* to, const void* from, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\ncp.async.bulk.commit_group;" ::"l"(to),
               "r"(sharedAddress(from)), "r"(bytes)
               : "memory");
}
// Until it has read all that this thread had it add.
__device__ __forceinline__ void addsAreRead() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void addsAreDone() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t packed(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace
#endif
