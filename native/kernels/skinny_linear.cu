// grove_skinny_linear: products x W^T of few rows, bound by reading W, with what follows them in a decode step: a bias, a residual, SwiGLU, an
// adapter. Meaning, and what its bits are compared with: native/skinny_linear.cc, lora_linear.cc. Hopper only.
//
// A block takes 64 or 128 rows of x against a tile of W's rows; slices of each stream through a ring of shared memory of its own that the copy engine
// fills. Two warps drive the copies, a warpgroup for each 64 rows multiplies. Every sum over K is taken in order by one block, or where the caller
// says so in two halves by two blocks: a row's result depends on nothing but the row, and equals cuBLAS's where that does not split either. Tiles are
// as narrow as keeps every multiprocessor busy and no narrower (32 columns where x is most of what a block reads): a block also reads all of its rows
// of x, which pass through shared memory twice.
//
// Launches are chained: the first slices of W are on their way before the kernel that makes x has ended. A ring leaves some shared memory to the
// blocks of the small kernel that comes next, which otherwise could not be there in time.
#include "hopper.cuh"
#include "launch.cuh"
#include "linear_epilogue.cuh"
#include "lora_spans.cuh"
#include "tensor_map.cuh"

namespace {

constexpr int kSlice = 64;               // columns of one copy: 128 bytes, a row of the swizzle
constexpr int kSharedBytes = 220 << 10;  // of 227 KB: see above
constexpr int kMostStages = 32;

// ROWS of x; a tile of W is PARTS times WIDTH rows (SwiGLU: gate and up); a stage holds SLICES slices; SPLIT blocks share the sum over K, each takes
// a part of K for all of the tile and finishes a part of its columns. x has STAGES_X stages, W what is left.
template <int ROWS, int WIDTH, int PARTS, int SLICES, int SPLIT, int STAGES_X>
struct Shape {
  static constexpr int tile = WIDTH * PARTS;
  static constexpr int multipliers = 2 * ROWS;  // threads
  static constexpr int threads = multipliers + 64;
  static constexpr int groups = WIDTH / 8;  // of eight columns
  static constexpr int exchanged = SPLIT == 1 ? 0 : (groups + 1) / 2;  // groups that a block gets from the other one
  static constexpr int exchangeBytes = 2 * exchanged * multipliers * static_cast<int>(sizeof(float4));
  static constexpr int bytesW = tile * kSlice * 2 * SLICES, bytesX = ROWS * kSlice * 2 * SLICES;
  static constexpr int room = (kSharedBytes - exchangeBytes - STAGES_X * bytesX) / bytesW;
  static constexpr int stagesX = STAGES_X, stagesW = room < kMostStages ? room : kMostStages;
  static constexpr int bytes = stagesW * bytesW + stagesX * bytesX + exchangeBytes + 1024;
  static_assert(stagesX >= 2 && stagesW >= 2);
};

// The steps of a block, first and count. Halves: K is cut at a multiple of kCut, the first half being the longer if they differ.
constexpr int kCut = 256;
// With fewer columns a half has fewer steps than a ring has stages: of a block's two warpgroups one could come to the exchange of the next tile
// before the other has come to this one's, and `received` would count its arrivals for both.
constexpr int kLeastHalved = 4096;
template <int SLICES, int SPLIT>
__device__ __forceinline__ int2 stepsOf(int k, int rank) {
  constexpr int width = kSlice * SLICES;
  if (SPLIT == 1) return {0, k / width};
  const int cut = (k / kCut + 1) / 2 * kCut;
  return rank == 0 ? int2{0, cut / width} : int2{cut / width, (k - cut) / width};
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// A ring's stages, one after the other.
template <int STAGES>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// Adds the other block's sums for half of the tile's columns to ours and gives it ours for the other half. Returns the groups of eight columns that
// are complete. Two buffers in turn: whoever sends for the next tile but one has received for the next, so the other block is done with this one.
template <int WIDTH>
__device__ __forceinline__ int2 exchange(float (&sum)[WIDTH / 2], uint8_t* buffers, uint64_t* received, int rank, int round, int threads) {
  constexpr int kGroups = WIDTH / 8, kFirst = (kGroups + 1) / 2;  // of rank 0; the others are rank 1's
  float4* buffer = reinterpret_cast<float4*>(buffers) + (round & 1) * kFirst * threads + threadIdx.x;
  const uint32_t to = addressIn(rank ^ 1, buffer);
  const auto second = [](int g) { return 4 * (kFirst + g < kGroups ? kFirst + g : kGroups - 1); };  // where sums of rank 1's group g are
#pragma unroll
  for (int g = 0; g < kFirst; g++) {
    const int i = 4 * g, j = second(g);
    if (rank == 1) storeIn(to + 16 * g * threads, {sum[i], sum[i + 1], sum[i + 2], sum[i + 3]});
    else if (kFirst + g < kGroups) storeIn(to + 16 * g * threads, {sum[j], sum[j + 1], sum[j + 2], sum[j + 3]});
  }
  __syncwarp();  // a warp's stores are done when its first lane says so
  if (threadIdx.x % 32 == 0) barrierArriveIn(addressIn(rank ^ 1, received));
  barrierWaitCluster(received, round & 1);
#pragma unroll
  for (int g = 0; g < kFirst; g++) {
    const float4 got = buffer[g * threads];
    const int i = 4 * g, j = second(g);
    if (rank == 0) sum[i] += got.x, sum[i + 1] += got.y, sum[i + 2] += got.z, sum[i + 3] += got.w;
    else if (kFirst + g < kGroups) sum[j] += got.x, sum[j + 1] += got.y, sum[j + 2] += got.z, sum[j + 3] += got.w;
  }
  return rank == 0 ? int2{0, kFirst} : int2{kFirst, kGroups};
}

#endif

template <int ROWS, int WIDTH, int PARTS, int SLICES, int SPLIT, int STAGES_X, int EPILOGUE, bool ADAPTED>
__global__ void __launch_bounds__(Shape<ROWS, WIDTH, PARTS, SLICES, SPLIT, STAGES_X>::threads, 1)
    skinnyLinear(const __grid_constant__ CUtensorMap mapW, const __grid_constant__ CUtensorMap mapX, const Arguments args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using S = Shape<ROWS, WIDTH, PARTS, SLICES, SPLIT, STAGES_X>;
  extern __shared__ uint8_t memory[];
  uint8_t* ringW = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + 1023) & ~uintptr_t{1023});
  uint8_t* ringX = ringW + S::stagesW * S::bytesW;
  __shared__ uint64_t fullW[S::stagesW], emptyW[S::stagesW], fullX[S::stagesX], emptyX[S::stagesX], received;
  // Blocks next to each other share a tile of W and differ in their part of K, then in their rows of x.
  const int rank = SPLIT == 1 ? 0 : static_cast<int>(clusterRank()), lane = blockIdx.x / SPLIT, lanes = gridDim.x / SPLIT;
  const int blocksOfRows = (args.m + ROWS - 1) / ROWS, tiles = (args.n + WIDTH - 1) / WIDTH * blocksOfRows;
  const int2 part = stepsOf<SLICES, SPLIT>(args.k, rank);
  const int firstStep = part.x, steps = part.y;
  if (threadIdx.x == S::multipliers) {
    prefetchMap(&mapW);
    for (int s = 0; s < S::stagesW; s++) {
      barrierInit(&fullW[s], 1);
      barrierInit(&emptyW[s], ROWS / 64);
    }
    for (int s = 0; s < S::stagesX; s++) {
      barrierInit(&fullX[s], 1);
      barrierInit(&emptyX[s], ROWS / 64);
    }
    barrierInit(&received, S::multipliers / 32);
    barrierInitDone();
  }
  __syncthreads();
  letNextStart();
  if (SPLIT > 1) clusterArrive();  // the other block's barrier is there once it has arrived too

  if (threadIdx.x == S::multipliers) {  // brings W
    // Stages on their way at once. Gate and up have many bytes and a norm before them, whose few loads would wait behind all that is asked for.
    constexpr int ahead = PARTS == 2 && ROWS == 64 ? 2 : S::stagesW;
    const uint64_t once = readOnce();
    Turn<S::stagesW> turn, arriving;
    int i = 0;
    for (int tile = lane; tile < tiles; tile += lanes) {
      for (int step = 0; step < steps; step++, i++, turn.next()) {
        if (ahead < S::stagesW && i >= ahead) {
          barrierWait(&fullW[arriving.stage], arriving.parity);
          arriving.next();
        }
        if (i >= S::stagesW) barrierWait(&emptyW[turn.stage], turn.parity ^ 1);
        barrierExpect(&fullW[turn.stage], S::bytesW);
#pragma unroll
        for (int slice = 0; slice < SLICES; slice++)
          loadBox(ringW + turn.stage * S::bytesW + slice * S::tile * 128, &mapW, tile / blocksOfRows * WIDTH, (firstStep + step) * SLICES + slice,
                  &fullW[turn.stage], once);
      }
    }
  }
  if (threadIdx.x == S::multipliers + 32) {  // brings x
    prefetchMap(&mapX);
    const uint64_t often = readOften();
    Turn<S::stagesX> turn;
    int i = 0;
    waitForPrevious();
    for (int tile = lane; tile < tiles; tile += lanes) {
      for (int step = 0; step < steps; step++, i++, turn.next()) {
        if (i >= S::stagesX) barrierWait(&emptyX[turn.stage], turn.parity ^ 1);
        barrierExpect(&fullX[turn.stage], S::bytesX);
#pragma unroll
        for (int slice = 0; slice < SLICES; slice++)
          loadBox(ringX + turn.stage * S::bytesX + slice * ROWS * 128, &mapX, tile % blocksOfRows * ROWS, (firstStep + step) * SLICES + slice,
                  &fullX[turn.stage], often);
      }
    }
  }
  if (threadIdx.x >= S::multipliers) return;

  if constexpr (ADAPTED) {
    for (int tile = lane; tile < tiles; tile += lanes) fetchLora<WIDTH, PARTS>(args.lora, args.n, tile / blocksOfRows * WIDTH);
  }
  waitForPrevious();
  const int warpgroup = threadIdx.x / 128;
  float sum[S::tile / 2];
  Turn<S::stagesW> turnW;
  Turn<S::stagesX> turnX;
  for (int tile = lane, round = 0; tile < tiles; tile += lanes, round++) {
    const int firstRow = tile % blocksOfRows * ROWS + warpgroup * 64, firstColumn = tile / blocksOfRows * WIDTH;
    Addend<WIDTH, EPILOGUE, ADAPTED> addend;
    addend.load(args, firstRow, firstColumn);
#pragma unroll
    for (int e = 0; e < S::tile / 2; e++) sum[e] = 0;
    int beforeW = 0, beforeX = 0;  // stages of the step before
    const auto giveBack = [&] {
      if (threadIdx.x % 128 != 0) return;
      barrierArrive(&emptyW[beforeW]);
      barrierArrive(&emptyX[beforeX]);
    };
    for (int step = 0; step < steps; step++) {
      barrierWait(&fullW[turnW.stage], turnW.parity);
      barrierWait(&fullX[turnX.stage], turnX.parity);
      pin(sum);
      productsBegin();
#pragma unroll
      for (int slice = 0; slice < SLICES; slice++) {
        const uint64_t x = matrixAt(ringX + turnX.stage * S::bytesX + (slice * ROWS + warpgroup * 64) * 128);
        const uint64_t w = matrixAt(ringW + turnW.stage * S::bytesW + slice * S::tile * 128);
#pragma unroll
        for (int k = 0; k < kSlice / 16; k++) Product<S::tile>::add(sum, x + 2 * k, w + 2 * k);
      }
      productsCommit();
      productsWait<1>();  // those of the step before are done: its buffers are free
      if (step > 0) giveBack();
      beforeW = turnW.stage, beforeX = turnX.stage;
      turnW.next();
      turnX.next();
    }
    productsWait<0>();
    pin(sum);
    giveBack();
    int2 groups = {0, S::groups};
    if constexpr (SPLIT == 2) {
      if (round == 0) clusterWait();
      groups = exchange<WIDTH>(sum, ringX + S::stagesX * S::bytesX, &received, rank, round, S::multipliers);
    }
    store<WIDTH, EPILOGUE, ADAPTED>(args, sum, addend, firstRow, firstColumn, groups);
  }
#endif
}

// A row-major matrix [parts, rows, k] as loadBox takes it, copied in boxes of `box` rows of each part and one slice.
bool describe(CUtensorMap* map, const void* data, int parts, int rows, int k, int box) {
  const auto size = [](int n) { return static_cast<cuuint64_t>(n); };
  const cuuint64_t sizes[4] = {kSlice, size(rows), size(parts), size(k / kSlice)}, strides[3] = {size(k) * 2, size(rows) * size(k) * 2, kSlice * 2};
  const cuuint32_t boxes[4] = {kSlice, static_cast<cuuint32_t>(box), static_cast<cuuint32_t>(parts), 1};
  return describeTensor(map, data, sizes, strides, boxes);
}

template <int ROWS, int WIDTH, int PARTS, int SLICES, int SPLIT, int STAGES_X, int EPILOGUE, bool ADAPTED>
int launch(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  using S = Shape<ROWS, WIDTH, PARTS, SLICES, SPLIT, STAGES_X>;
  static_assert(SPLIT == 1 || ROWS == 64 || kLeastHalved / 2 / (kSlice * SLICES) > S::stagesX, "see kLeastHalved");
  const auto kernel = skinnyLinear<ROWS, WIDTH, PARTS, SLICES, SPLIT, STAGES_X, EPILOGUE, ADAPTED>;
  CUtensorMap mapW, mapX;
  if (!describe(&mapW, w, PARTS, args.n, args.k, WIDTH) || !describe(&mapX, x, 1, args.m, args.k, ROWS))
    return static_cast<int>(cudaErrorInvalidValue);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::bytes);
  if (status != cudaSuccess) return static_cast<int>(status);
  const int tiles = (args.n + WIDTH - 1) / WIDTH * ((args.m + ROWS - 1) / ROWS), lanes = processors / SPLIT;
  return static_cast<int>(
      launchChained<SPLIT>(kernel, dim3(SPLIT * (tiles < lanes ? tiles : lanes)), dim3(S::threads), S::bytes, stream, mapW, mapX, args));
}

// The narrowest tile with which no block has two, but no fewer than 32 columns: 64 rows of x a block. What a multiprocessor can take in bounds these, and
// that is x for the most part: with 16 columns more blocks would take no less time, and leave no multiprocessor to the blocks of the next kernel.
template <int EPILOGUE, int SLICES, bool ADAPTED>
int launchNarrow(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  constexpr int stages = 16 / SLICES;  // of x: 128 KB
  const auto fits = [&](int width) { return (args.n + width - 1) / width * ((args.m + 63) / 64) <= processors; };
  if (fits(32)) return launch<64, 32, 1, SLICES, 1, stages, EPILOGUE, ADAPTED>(x, w, args, processors, stream);
  if (fits(40)) return launch<64, 40, 1, SLICES, 1, stages, EPILOGUE, ADAPTED>(x, w, args, processors, stream);
  if (fits(56)) return launch<64, 56, 1, SLICES, 1, stages - 1, EPILOGUE, ADAPTED>(x, w, args, processors, stream);
  return launch<64, 72, 1, SLICES, 1, stages - 1, EPILOGUE, ADAPTED>(x, w, args, processors, stream);
}

// Many columns: 144 rows of W a block, several tiles each.
template <int EPILOGUE, bool ADAPTED>
int launchWide(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  constexpr int parts = EPILOGUE == kSwiglu ? 2 : 1;
  if (args.m <= 64) return launch<64, 144 / parts, parts, 2, 1, 4, EPILOGUE, ADAPTED>(x, w, args, processors, stream);
  return launch<128, 144 / parts, parts, EPILOGUE == kSwiglu ? 1 : 2, 1, EPILOGUE == kSwiglu ? 6 : 3, EPILOGUE, ADAPTED>(x, w, args, processors, stream);
}

// Two blocks a tile, each with half of K.
template <bool ADAPTED>
int launchHalves(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  const auto fits = [&](int width) { return (args.n + width - 1) / width * 2 <= processors; };
  if (args.m <= 64) {
    if (fits(32)) return launch<64, 32, 1, 4, 2, 4, kResidual, ADAPTED>(x, w, args, processors, stream);
    return launch<64, 56, 1, 2, 2, 6, kResidual, ADAPTED>(x, w, args, processors, stream);
  }
  if (fits(24)) return launch<128, 24, 1, 2, 2, 4, kResidual, ADAPTED>(x, w, args, processors, stream);
  return launch<128, 56, 1, 2, 2, 4, kResidual, ADAPTED>(x, w, args, processors, stream);
}

template <int EPILOGUE, bool ADAPTED>
int launchAny(const void* x, const void* w, const Arguments& args, int processors, cudaStream_t stream) {
  if constexpr (EPILOGUE == kSwiglu) {
    return launchWide<EPILOGUE, ADAPTED>(x, w, args, processors, stream);
  } else {
    if constexpr (EPILOGUE == kPlain) {
      if (args.n > 72 * processors) return launchWide<EPILOGUE, ADAPTED>(x, w, args, processors, stream);
    }
    if (args.k % (4 * kSlice) == 0) return launchNarrow<EPILOGUE, 4, ADAPTED>(x, w, args, processors, stream);
    return launchNarrow<EPILOGUE, 2, ADAPTED>(x, w, args, processors, stream);
  }
}

}  // namespace

// Whether the current device can run it.
extern "C" __attribute__((visibility("default"))) int grove_skinny_linear_fits() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9;
}

// The launcher; its contract is GroveSkinnyLinearLauncher in native/kernels.h.
extern "C" __attribute__((visibility("default"))) int grove_skinny_linear(int epilogue, const void* x, const void* w, const void* addend,
                                                                          const GroveLora* lora, void* out, int m, int n, int k, void* stream) {
  int device = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return static_cast<int>(status);
  if (m < 1 || n % 8 != 0 || k % (epilogue == 4 ? kCut : 2 * kSlice) != 0 || (epilogue == 4 && k < kLeastHalved))
    return static_cast<int>(cudaErrorInvalidValue);
  Arguments args{static_cast<const __nv_bfloat16*>(addend), static_cast<__nv_bfloat16*>(out), m, n, k, {}};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (lora != nullptr) {
    args.lora = *lora;
    if (lora->rank % 2 != 0 || !spansFit(lora->spans)) return static_cast<int>(cudaErrorInvalidValue);
    switch (epilogue) {
      case kBias: return launchAny<kBias, true>(x, w, args, processors, on);
      case kResidual: return launchAny<kResidual, true>(x, w, args, processors, on);
      case kSwiglu: return launchAny<kSwiglu, true>(x, w, args, processors, on);
      case 4: return launchHalves<true>(x, w, args, processors, on);
    }
    return static_cast<int>(cudaErrorInvalidValue);
  }
  switch (epilogue) {
    case kPlain: return launchAny<kPlain, false>(x, w, args, processors, on);
    case kBias: return launchAny<kBias, false>(x, w, args, processors, on);
    case kResidual: return launchAny<kResidual, false>(x, w, args, processors, on);
    case kSwiglu: return launchAny<kSwiglu, false>(x, w, args, processors, on);
    case 4: return launchHalves<false>(x, w, args, processors, on);
  }
  return static_cast<int>(cudaErrorInvalidValue);
}
