// grove_skinny_linear: products x W^T of few rows, bound by reading W, with what follows them in a decode step: a bias, a residual, or SwiGLU.
// Meaning, and what its bits are compared with: native/skinny_linear.cc. Hopper only.
//
// A block takes 64 or 128 rows of x against a tile of W's rows; slices of both stream through a ring of shared memory that the copy engine fills.
// One warpgroup drives the copies, one for each 64 rows multiplies. Every sum over K is taken in order by one block, or where the caller says so in
// two halves by two blocks: a row's result depends on nothing but the row, and equals cuBLAS's where that does not split either. Tiles are as narrow
// as keeps every multiprocessor busy and no narrower: a block also reads all of its rows of x, and a multiprocessor takes in about 90 GB/s.
//
// Launches are chained: the first slices of W are on their way before the kernel that makes x has ended.
#include "hopper.cuh"
#include "launch.cuh"

namespace {

enum Epilogue { kPlain = 0, kBias = 1, kResidual = 2, kSwiglu = 3 };  // as in native/kernels.h, where 4 is kResidual in halves

struct Arguments {
  const __nv_bfloat16* addend;  // bias [n], or residual [m, n]
  __nv_bfloat16* out;           // [m, n]
  int m, n, k;
};

constexpr int kSlice = 64;  // columns of one copy: 128 bytes, a row of the swizzle
constexpr int kSharedBytes = 232448 - 2048;

// ROWS of x; a tile of W is PARTS boxes of WIDTH rows (SwiGLU: gate and up); a stage holds SLICES slices; SPLIT blocks share the sum over K, each
// takes a part of K for all of the tile and finishes a part of its columns.
template <int ROWS, int WIDTH, int PARTS, int SLICES, int SPLIT>
struct Shape {
  static constexpr int tile = WIDTH * PARTS;
  static constexpr int warpgroups = ROWS / 64;
  static constexpr int threads = 128 * (1 + warpgroups);
  static constexpr int groups = WIDTH / 8;                // of eight columns
  static constexpr int exchanged = (groups + 1) / 2 * 4;  // sums that a thread gets from the other block
  static constexpr int exchangeBytes = SPLIT == 1 ? 0 : 2 * warpgroups * exchanged * 128 * 4;
  static constexpr int stageBytes = (tile + ROWS) * kSlice * 2 * SLICES;
  static constexpr int most = (kSharedBytes - exchangeBytes) / stageBytes;
  static constexpr int stages = most > 16 ? 16 : most;
};

// The steps of a block, first and count. Halves: K is cut at a multiple of kCut, the first half being the longer if they differ.
constexpr int kCut = 256;
// With fewer columns a half has fewer steps than a ring has stages: of a block's two warpgroups one could come to the exchange of the next tile before the
// other has come to this one's, and `received` would count its arrivals for both.
constexpr int kLeastHalved = 4096;
template <int SLICES, int SPLIT>
__device__ __forceinline__ int2 stepsOf(int k, int rank) {
  constexpr int width = kSlice * SLICES;
  if (SPLIT == 1) return {0, k / width};
  const int cut = (k / kCut + 1) / 2 * kCut;
  return rank == 0 ? int2{0, cut / width} : int2{cut / width, (k - cut) / width};
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

// silu(gate) up, rounded where silu and mul round.
__device__ __forceinline__ float gated(float gate, float up) {
  gate = rounded(gate);
  return rounded(gate / (1.0f + __expf(-gate))) * rounded(up);
}

// Four lanes hold two neighbouring columns of four groups of eight each, word[g] of group g; returns all eight columns of group `lane % 4`.
__device__ __forceinline__ uint4 gather(const uint32_t (&word)[4]) {
  const int q = threadIdx.x % 4;
  uint32_t got[4];  // got[r]: from lane q ^ r, which sends what belongs to q
#pragma unroll
  for (int r = 0; r < 4; r++) {
    const int to = q ^ r;
    got[r] = __shfl_xor_sync(~0u, to == 0 ? word[0] : to == 1 ? word[1] : to == 2 ? word[2] : word[3], r);
  }
  const auto from = [&](int lane) { return q == lane ? got[0] : (q ^ lane) == 1 ? got[1] : (q ^ lane) == 2 ? got[2] : got[3]; };
  return {from(0), from(1), from(2), from(3)};
}

// Adds the other block's sums for half of the tile's columns to ours and gives it ours for the other half. Returns the groups of eight columns that
// are complete. Two buffers in turn: whoever sends for the next tile but one has received for the next, so the other block is done with this one.
template <int WIDTH>
__device__ __forceinline__ int2 exchange(float (&sum)[WIDTH / 2], uint8_t* buffers, uint64_t* received, int rank, int round) {
  constexpr int kGroups = WIDTH / 8, kFirst = (kGroups + 1) / 2;  // of rank 0; the others are rank 1's
  const int thread = threadIdx.x - 128, threads = blockDim.x - 128;
  float* buffer = reinterpret_cast<float*>(buffers) + (round & 1) * 4 * kFirst * threads + thread;
  const uint32_t to = addressIn(rank ^ 1, buffer);
#pragma unroll
  for (int i = 0; i < 4 * kFirst; i++) {
    const int theirs = rank == 0 ? 4 * kFirst + i : i;
    if (theirs < WIDTH / 2) storeIn(to + 4 * i * threads, rank == 0 ? sum[min(4 * kFirst + i, WIDTH / 2 - 1)] : sum[i]);
  }
  barrierArriveIn(addressIn(rank ^ 1, received));
  barrierWaitCluster(received, round & 1);
#pragma unroll
  for (int i = 0; i < 4 * kFirst; i++) {
    if (rank == 0) sum[i] += buffer[i * threads];
    else if (4 * kFirst + i < WIDTH / 2) sum[min(4 * kFirst + i, WIDTH / 2 - 1)] += buffer[i * threads];
  }
  return rank == 0 ? int2{0, kFirst} : int2{kFirst, kGroups};
}

// The results of a warp's 16 rows and one tile, what follows the product included: of its groups of eight columns, those from groups.x up to
// groups.y. 16 bytes a store, so that sectors are written whole.
template <int WIDTH, int PARTS, int EPILOGUE>
__device__ __forceinline__ void store(const Arguments& args, const float (&sum)[PARTS][WIDTH / 2], int firstRow, int firstColumn, int2 groups) {
  const int q = threadIdx.x % 4, row = firstRow + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int part = 0; part < (EPILOGUE == kSwiglu ? 1 : PARTS); part++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int m = row + 8 * half;
      const int64_t start = static_cast<int64_t>(m) * args.n;
#pragma unroll
      for (int first = 0; first < WIDTH / 8; first += 4) {  // groups of eight columns, four at a time
        uint32_t word[4] = {};
#pragma unroll
        for (int g = 0; g < 4 && first + g < WIDTH / 8; g++) {
          const int at = 4 * (first + g) + 2 * half, n = firstColumn + part * WIDTH + 8 * (first + g) + 2 * q;
          const bool inside = m < args.m && n < args.n;
          float x = sum[part][at], y = sum[part][at + 1];
          if (EPILOGUE == kBias && inside) {
            const float2 bias = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(args.addend + n));
            x += bias.x, y += bias.y;
          }
          if (EPILOGUE == kResidual && inside) {  // rounded before the residual too, as aten::addmm does it
            const float2 residual = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(args.addend + start + n));
            x = rounded(x) + residual.x, y = rounded(y) + residual.y;
          }
          if (EPILOGUE == kSwiglu) x = gated(x, sum[PARTS - 1][at]), y = gated(y, sum[PARTS - 1][at + 1]);
          const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
          word[g] = *reinterpret_cast<const uint32_t*>(&pair);
        }
        const uint4 eight = gather(word);
        const int n = firstColumn + part * WIDTH + 8 * (first + q);
        if (m < args.m && n < args.n && first + q >= groups.x && first + q < groups.y) *reinterpret_cast<uint4*>(args.out + start + n) = eight;
      }
    }
  }
}

#endif

template <int ROWS, int WIDTH, int PARTS, int SLICES, int SPLIT, int EPILOGUE>
__global__ void __launch_bounds__(Shape<ROWS, WIDTH, PARTS, SLICES, SPLIT>::threads, 1)
    skinnyLinear(const __grid_constant__ CUtensorMap mapW, const __grid_constant__ CUtensorMap mapX, const Arguments args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using S = Shape<ROWS, WIDTH, PARTS, SLICES, SPLIT>;
  constexpr int columns = EPILOGUE == kSwiglu ? WIDTH : S::tile;  // of out, a tile
  extern __shared__ uint8_t memory[];
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + 1023) & ~uintptr_t{1023});
  __shared__ uint64_t full[S::stages], empty[S::stages], received;
  const auto stageW = [&](int s, int slice, int part) { return ring + s * S::stageBytes + (slice * S::tile + part * WIDTH) * 128; };
  const auto stageX = [&](int s, int slice) { return ring + s * S::stageBytes + (SLICES * S::tile + slice * ROWS) * 128; };
  // Blocks next to each other share a tile of W and differ in their part of K, then in their rows of x.
  const int rank = SPLIT == 1 ? 0 : static_cast<int>(clusterRank()), lane = blockIdx.x / SPLIT, lanes = gridDim.x / SPLIT;
  const int blocksOfRows = (args.m + ROWS - 1) / ROWS, tiles = (args.n + columns - 1) / columns * blocksOfRows;
  const int2 part = stepsOf<SLICES, SPLIT>(args.k, rank);
  const int firstStep = part.x, steps = part.y, rounds = (tiles - lane + lanes - 1) / lanes;
  const auto tileOf = [&](int round) { return lane + round * lanes; };
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::stages; s++) {
      barrierInit(&full[s], 1);
      barrierInit(&empty[s], S::warpgroups);
    }
    barrierInit(&received, 128 * S::warpgroups);
    barrierInitDone();
  }
  __syncthreads();
  if (SPLIT > 1) clusterSync();  // the other block's barrier is there
  letNextStart();

  if (threadIdx.x < 128) {  // the producer
    if (S::warpgroups == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x != 0) return;
    const uint64_t once = readOnce(), often = readOften();
    const auto loadW = [&](int i) {
      const int s = i % S::stages, tile = tileOf(i / steps) / blocksOfRows;
      barrierExpect(&full[s], S::stageBytes);
#pragma unroll
      for (int slice = 0; slice < SLICES; slice++)
#pragma unroll
        for (int part = 0; part < PARTS; part++)
          loadBox(stageW(s, slice, part), &mapW, ((firstStep + i % steps) * SLICES + slice) * kSlice,
                  tile * columns + part * (EPILOGUE == kSwiglu ? args.n : WIDTH), &full[s], once);
    };
    const auto loadX = [&](int i) {
      const int s = i % S::stages, row = tileOf(i / steps) % blocksOfRows * ROWS;
#pragma unroll
      for (int slice = 0; slice < SLICES; slice++) loadBox(stageX(s, slice), &mapX, ((firstStep + i % steps) * SLICES + slice) * kSlice, row, &full[s], often);
    };
    const int total = rounds * steps, ahead = min(total, S::stages);
    for (int i = 0; i < ahead; i++) loadW(i);
    waitForPrevious();
    for (int i = 0; i < ahead; i++) loadX(i);
    for (int i = ahead; i < total; i++) {
      barrierWait(&empty[i % S::stages], (i / S::stages - 1) & 1);
      loadW(i);
      loadX(i);
    }
    return;
  }

  if (S::warpgroups == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  waitForPrevious();
  const int warpgroup = threadIdx.x / 128 - 1;
  float sum[PARTS][WIDTH / 2];
  int i = 0;  // stage of all rounds
  for (int round = 0; round < rounds; round++) {
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
      for (int e = 0; e < WIDTH / 2; e++) sum[part][e] = 0;
    for (int step = 0; step < steps; step++, i++) {
      const int s = i % S::stages;
      barrierWait(&full[s], i / S::stages & 1);
#pragma unroll
      for (int part = 0; part < PARTS; part++) pin(sum[part]);
      productsBegin();
#pragma unroll
      for (int slice = 0; slice < SLICES; slice++) {
        const uint64_t x = matrixAt(stageX(s, slice) + warpgroup * 64 * 128);
#pragma unroll
        for (int k = 0; k < kSlice / 16; k++)
#pragma unroll
          for (int part = 0; part < PARTS; part++) Product<WIDTH>::add(sum[part], x + 2 * k, matrixAt(stageW(s, slice, part)) + 2 * k);
      }
      productsCommit();
      productsWait<1>();  // those of the stage before are done: its buffer is free
      if (step > 0 && threadIdx.x % 128 == 0) barrierArrive(&empty[(i - 1) % S::stages]);
    }
    productsWait<0>();
#pragma unroll
    for (int part = 0; part < PARTS; part++) pin(sum[part]);
    if (threadIdx.x % 128 == 0) barrierArrive(&empty[(i - 1) % S::stages]);
    const int tile = tileOf(round);
    int2 groups = {0, S::groups};
    if constexpr (SPLIT == 2) groups = exchange<WIDTH>(sum[0], ring + S::stages * S::stageBytes, &received, rank, round);
    store<WIDTH, PARTS, EPILOGUE>(args, sum, tile % blocksOfRows * ROWS + warpgroup * 64, tile / blocksOfRows * columns, groups);
  }
#endif
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                            const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A row-major [rows, k] matrix, copied in boxes of `box` rows and one slice.
bool describe(CUtensorMap* map, const void* data, int rows, int k, int box) {
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return status == cudaSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (encode == nullptr) return false;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)}, strides[1] = {static_cast<cuuint64_t>(k) * 2};
  const cuuint32_t boxes[2] = {kSlice, static_cast<cuuint32_t>(box)}, steps[2] = {1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, boxes, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <int ROWS, int WIDTH, int PARTS, int SLICES, int SPLIT, int EPILOGUE>
int launch(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  using S = Shape<ROWS, WIDTH, PARTS, SLICES, SPLIT>;
  static_assert(SPLIT == 1 || S::warpgroups == 1 || kLeastHalved / 2 / (kSlice * SLICES) > S::stages, "see kLeastHalved");
  const auto kernel = skinnyLinear<ROWS, WIDTH, PARTS, SLICES, SPLIT, EPILOGUE>;
  CUtensorMap mapW, mapX;
  if (!describe(&mapW, w, EPILOGUE == kSwiglu ? 2 * args.n : args.n, args.k, WIDTH) || !describe(&mapX, x, args.m, args.k, ROWS))
    return static_cast<int>(cudaErrorInvalidValue);
  const int bytes = S::stages * S::stageBytes + S::exchangeBytes + 1024;
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return static_cast<int>(status);
  const int columns = EPILOGUE == kSwiglu ? WIDTH : S::tile;
  const int tiles = (args.n + columns - 1) / columns * ((args.m + ROWS - 1) / ROWS), lanes = processors / SPLIT;
  return static_cast<int>(
      launchChained<SPLIT>(kernel, dim3(SPLIT * (tiles < lanes ? tiles : lanes)), dim3(S::threads), bytes, stream, mapW, mapX, args));
}

// The narrowest tile with which no block has two: 64 rows of x a block.
template <int EPILOGUE, int SLICES>
int launchNarrow(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  const auto fits = [&](int width) { return (args.n + width - 1) / width * ((args.m + 63) / 64) <= processors; };
  if (fits(16)) return launch<64, 16, 1, SLICES, 1, EPILOGUE>(x, w, args, processors, stream);
  if (fits(32)) return launch<64, 32, 1, SLICES, 1, EPILOGUE>(x, w, args, processors, stream);
  if (fits(40)) return launch<64, 40, 1, SLICES, 1, EPILOGUE>(x, w, args, processors, stream);
  if (fits(56)) return launch<64, 56, 1, SLICES, 1, EPILOGUE>(x, w, args, processors, stream);
  return launch<64, 72, 1, SLICES, 1, EPILOGUE>(x, w, args, processors, stream);
}

// Many columns: 144 rows of W a block, several tiles each.
template <int EPILOGUE>
int launchWide(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  if (args.m <= 64) return launch<64, 72, 2, 2, 1, EPILOGUE>(x, w, args, processors, stream);
  if constexpr (EPILOGUE == kSwiglu) return launch<128, 72, 2, 1, 1, EPILOGUE>(x, w, args, processors, stream);
  else return launch<128, 144, 1, 2, 1, EPILOGUE>(x, w, args, processors, stream);
}

// Two blocks a tile, each with half of K.
int launchHalves(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  const auto fits = [&](int width) { return (args.n + width - 1) / width * 2 <= processors; };
  if (args.m <= 64) {
    if (fits(24)) return launch<64, 24, 1, 4, 2, kResidual>(x, w, args, processors, stream);
    return launch<64, 56, 1, 2, 2, kResidual>(x, w, args, processors, stream);
  }
  if (fits(24)) return launch<128, 24, 1, 2, 2, kResidual>(x, w, args, processors, stream);
  return launch<128, 56, 1, 2, 2, kResidual>(x, w, args, processors, stream);
}

template <int EPILOGUE>
int launchAny(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  if constexpr (EPILOGUE == kSwiglu) return launchWide<EPILOGUE>(x, w, args, processors, stream);
  if constexpr (EPILOGUE == kPlain) {
    if (args.n > 72 * processors) return launchWide<EPILOGUE>(x, w, args, processors, stream);
  }
  if (args.k % (4 * kSlice) == 0) return launchNarrow<EPILOGUE, 4>(x, w, args, processors, stream);
  return launchNarrow<EPILOGUE, 2>(x, w, args, processors, stream);
}

}  // namespace

// Whether the current device can run it.
extern "C" __attribute__((visibility("default"))) int grove_skinny_linear_fits() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9;
}

// The launcher; its contract is GroveSkinnyLinearLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_skinny_linear(int epilogue, const void* x, const void* w, const void* addend, void* out,
                                                                          int m, int n, int k, void* stream) {
  int device = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return static_cast<int>(status);
  if (m < 1 || n % 8 != 0 || k % (epilogue == 4 ? kCut : 2 * kSlice) != 0 || (epilogue == 4 && k < kLeastHalved))
    return static_cast<int>(cudaErrorInvalidValue);
  const Arguments args{static_cast<const __nv_bfloat16*>(addend), static_cast<__nv_bfloat16*>(out), m, n, k};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (epilogue) {
    case kPlain: return launchAny<kPlain>(x, w, args, processors, on);
    case kBias: return launchAny<kBias>(x, w, args, processors, on);
    case kResidual: return launchAny<kResidual>(x, w, args, processors, on);
    case kSwiglu: return launchAny<kSwiglu>(x, w, args, processors, on);
    case 4: return launchHalves(x, w, args, processors, on);
  }
  return static_cast<int>(cudaErrorInvalidValue);
}
