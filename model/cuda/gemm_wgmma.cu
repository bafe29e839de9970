// Matrix products of many rows on wgmma, the tensor cores' asynchronous instructions, fed by the tensor memory
// accelerator. Compiled for sm_90a alone.
//
// One warp brings slabs of 64 columns of the rows and of the weights into a ring of stages, 128-byte swizzled, and runs
// ahead into the next tile. Each of one or two warpgroups multiplies 64 of the tile's rows. The order of the sums is
// gemm.cu's: a piece of the inner dimension is summed by the tensor cores, then added to the total in float32; while a
// warpgroup waits for the end of its piece, or stores its tile, others keep the tensor cores busy: the second of its
// block, or another block's on the same multiprocessor.
#include "model/cuda/gemm_wgmma.h"

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "model/cuda/chain.cuh"
#include "model/cuda/tensor_core.cuh"
#include "model/cuda/tensor_map.h"
#include "model/cuda/wgmma.cuh"

namespace smt::cuda {
namespace {

template <int kPlanes_, int kWarpgroups_, int kN_, int kStages_, int kBlocks_>
struct WgmmaShape {
  static constexpr int kPlanes = kPlanes_, kN = kN_, kStages = kStages_;
  static constexpr int kM = 64 * kWarpgroups_;
  static constexpr int kBlocks = kBlocks_;                            // of a multiprocessor
  static constexpr int kTogether = kN <= 64 && kBlocks <= 2 ? 2 : 1;  // pieces in registers
  static constexpr int kConsumers = 4 * kWarpgroups_;                 // warps
  // Two sets of 96 sums take more registers than an even share, so the other warps must give some of theirs, which
  // takes a whole warpgroup of them.
  static constexpr bool kGiveRegisters = kN > 128;
  static constexpr int kThreads = (kConsumers + (kGiveRegisters ? 4 : 1)) * kWarp;
  static constexpr int kRowsBytes = kPlanes * kM * kSlabRowBytes, kWeightsBytes = kPlanes * kN * kSlabRowBytes;
  static constexpr int kStageBytes = kRowsBytes + kWeightsBytes;
  // Each warp stores its 16 rows through shared memory of its own, kPass columns at a time. Eight banks from row to
  // row, so that a fragment is written without conflicts.
  static constexpr int kPass = kN % 64 == 0 && kBlocks == 1 ? 64 : 32;
  static constexpr int kPassStride = kPass + 8;
  static constexpr int kPassBytes = 16 * kPassStride * 4;
  // The widest tile is left to the tensor memory accelerator, which stores it while the next one is multiplied: boxes
  // of 64 rows x 128 bytes, swizzled, three a warpgroup, and the tile's biases.
  static constexpr bool kInBackground = kN == 192;
  static constexpr int kBoxBytes = 64 * 128, kBoxes = 3, kOutBytes = kBoxes * kBoxBytes;
  static constexpr int kBiasAt = kStages * kStageBytes + kWarpgroups_ * kOutBytes;
  static constexpr int kBarriersAt =
      kInBackground ? kBiasAt + kWarpgroups_ * kN * 4 : kStages * kStageBytes + kConsumers * kPassBytes;
  // Where many tiles go: small tiles are for products that are over before it matters who takes which.
  static constexpr bool kTickets = kN > 64;
  static constexpr int kTilesAt = kBarriersAt + 2 * kStages * 8;  // whose slab a stage has
  static constexpr int kShared = kTilesAt + kStages * 4;
  static_assert(kBlocks * (kShared + 1024) <= 228 * 1024);
};

template <Activation kActivation, int kCount>
__device__ __forceinline__ void ActivateAll(float4 (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    v[i] = {Activate(kActivation, v[i].x), Activate(kActivation, v[i].y), Activate(kActivation, v[i].z),
            Activate(kActivation, v[i].w)};
  }
}

// Stores a warp's sums [16][kPass], which are outputs j and on of `row` and on: Epilogue::StoreFour of several rows at
// a time, so that loads and activations overlap.
template <typename Shape, typename T>
__device__ __forceinline__ void StorePass(const Epilogue<T>& epilogue, const float* sums, int row, int j) {
  constexpr int kPass = Shape::kPass, kStride = Shape::kPassStride;
  constexpr int kQuads = kPass / 4, kRowsAtOnce = kWarp / kQuads;
  constexpr int kGroup = 4;
  const int lane = threadIdx.x % kWarp;
  if (epilogue.ldy % 4 != 0) {  // of rows that are not aligned, neighbouring lanes store neighbouring outputs
#pragma unroll 4
    for (int at = lane; at < 16 * kPass; at += kWarp) {
      epilogue.Store(row + at / kPass, j + at % kPass, sums[at / kPass * kStride + at % kPass]);
    }
    return;
  }
  const int column = lane % kQuads * 4, first = lane / kQuads;
  j += column;
  if (j + 4 > epilogue.n || (epilogue.residual != nullptr && epilogue.activation != Activation::kNone)) {
    for (int r = first; r < 16; r += kRowsAtOnce) {
      epilogue.StoreFour(row + r, j, *reinterpret_cast<const float4*>(sums + r * kStride + column));
    }
    return;
  }
  float4 bias = {};
  if (epilogue.bias != nullptr) bias = *reinterpret_cast<const float4*>(epilogue.bias + j);
#pragma unroll 1
  for (int from = first; from < 16; from += kGroup * kRowsAtOnce) {
    float4 v[kGroup], residual[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int r = from + i * kRowsAtOnce;
      v[i] = *reinterpret_cast<const float4*>(sums + r * kStride + column);
      residual[i] = {};
      if (epilogue.residual != nullptr && row + r < epilogue.rows) {
        residual[i] = *reinterpret_cast<const float4*>(epilogue.residual + (row + r) * epilogue.ldy + j);
      }
    }
    if (epilogue.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        v[i] = {v[i].x + bias.x, v[i].y + bias.y, v[i].z + bias.z, v[i].w + bias.w};
      }
    }
    switch (epilogue.activation) {
      case Activation::kNone:
        break;
      case Activation::kGelu:
        ActivateAll<Activation::kGelu>(v);
        break;
      case Activation::kRelu:
        ActivateAll<Activation::kRelu>(v);
        break;
      case Activation::kSoftplus:
        ActivateAll<Activation::kSoftplus>(v);
        break;
    }
    if (epilogue.residual != nullptr) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        v[i] = {v[i].x + residual[i].x, v[i].y + residual[i].y, v[i].z + residual[i].z, v[i].w + residual[i].w};
      }
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int r = from + i * kRowsAtOnce;
      if (row + r >= epilogue.rows) continue;
      const int64_t at = (row + r) * epilogue.ldy + j;
      if constexpr (sizeof(T) == 2) {
        if (!epilogue.float_output) {
          *reinterpret_cast<uint2*>(static_cast<T*>(epilogue.y) + at) = {PackPair<T>(v[i].x, v[i].y),
                                                                         PackPair<T>(v[i].z, v[i].w)};
          continue;
        }
      }
      *reinterpret_cast<float4*>(static_cast<float*>(epilogue.y) + at) = v[i];
    }
  }
}

template <Activation kActivation, int kCount>
__device__ __forceinline__ void ActivateAll(float (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = Activate(kActivation, v[i]);
}

// By a warpgroup: what Epilogue::Store makes of its 64 rows of a tile is on its way from shared memory when this
// returns. Residuals are added where they are, which must be where the sums go.
template <typename Shape, typename T>
__device__ __forceinline__ void StoreInBackground(const Epilogue<T>& epilogue, const CUtensorMap& to,
                                                  float (&total)[Shape::kN / 2], float2 own_bias,
                                                  std::byte* wgmma_shared, int row, int j0) {
  constexpr int kN = Shape::kN;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128;
  std::byte* const boxes = wgmma_shared + Shape::kStages * Shape::kStageBytes + group * Shape::kOutBytes;
  float* const bias = reinterpret_cast<float*>(wgmma_shared + Shape::kBiasAt) + group * kN;
  const auto sync = [&] { SyncSome(1 + group, 128); };
  if (thread == 0) AwaitStoresRead();  // of the tile before
  bias[thread] = own_bias.x;
  if (thread < kN - 128) bias[128 + thread] = own_bias.y;
  sync();
  if (epilogue.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      const float2 b = *reinterpret_cast<const float2*>(bias + 8 * i + 2 * t);
      total[4 * i] += b.x;
      total[4 * i + 1] += b.y;
      total[4 * i + 2] += b.x;
      total[4 * i + 3] += b.y;
    }
  }
  switch (epilogue.activation) {
    case Activation::kNone:
      break;
    case Activation::kGelu:
      ActivateAll<Activation::kGelu>(total);
      break;
    case Activation::kRelu:
      ActivateAll<Activation::kRelu>(total);
      break;
    case Activation::kSoftplus:
      ActivateAll<Activation::kSoftplus>(total);
      break;
  }
  // Of a box, 16 bytes of a row lie where 128-byte swizzle has them; the thread's rows are g and g + 8 of its
  // warp's 16.
  std::byte* const own = boxes + (thread / kWarp * 16 + g) * 128;
  const auto chunk = [&](int box, int which) { return own + box * Shape::kBoxBytes + ((which ^ g) << 4); };
  const auto send = [&](int columns, int from) {
    FenceForCopies();
    sync();
    if (thread != 0) return;
#pragma unroll
    for (int box = 0; box < Shape::kBoxes; ++box) {
      const int column = j0 + from + box * columns;
      if (column >= epilogue.n) break;
      const uint32_t at = SharedAddress(boxes) + box * Shape::kBoxBytes;
      if (epilogue.residual != nullptr) {
        AddBox(to, column, row, at);
      } else {
        StoreBox(to, column, row, at);
      }
    }
    CommitStores();
  };
  if constexpr (sizeof(T) == 2) {
    if (!epilogue.float_output) {
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {  // 8 outputs are 16 bytes
        std::byte* const at = chunk(i / 8, i % 8) + 4 * t;
        *reinterpret_cast<uint32_t*>(at) = PackPair<T>(total[4 * i], total[4 * i + 1]);
        *reinterpret_cast<uint32_t*>(at + 8 * 128) = PackPair<T>(total[4 * i + 2], total[4 * i + 3]);
      }
      return send(64, 0);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half == 1) {
      if (thread == 0) AwaitStoresRead();
      sync();
    }
#pragma unroll
    for (int i = 0; i < kN / 16; ++i) {  // 8 outputs are 32 bytes
      const float* from = total + half * (kN / 4) + 4 * i;
      std::byte* const at = chunk(i / 4, i % 4 * 2 + t / 2) + t % 2 * 8;
      *reinterpret_cast<float2*>(at) = {from[0], from[1]};
      *reinterpret_cast<float2*>(at + 8 * 128) = {from[2], from[3]};
    }
    send(32, half * (kN / 2));
  }
}

// Blocks take tiles by turns, the tiles of the same outputs one after the other: blocks that run together share
// weights. With `tickets`, a counter that is zero before and after, a block takes its next tile when it is done with
// one, so that blocks that find no multiprocessor at once hold nothing up.
template <typename Shape, int kSteps, typename T>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    LinearWgmmaKernel(const __grid_constant__ CUtensorMap weight, const __grid_constant__ CUtensorMap x,
                      const __grid_constant__ CUtensorMap to, int k, uint32_t* tickets, Epilogue<T> epilogue) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using E = WeightOf<T>;
  constexpr int kPlanes = Shape::kPlanes, kM = Shape::kM, kN = Shape::kN, kStages = Shape::kStages;
  constexpr int kTogether = Shape::kTogether;
  extern __shared__ __align__(1024) std::byte wgmma_shared[];  // the swizzle wants the 1024
  const uint32_t stages = SharedAddress(wgmma_shared);
  const uint32_t full = stages + Shape::kBarriersAt, empty = full + kStages * 8;
  int* const tile_of = reinterpret_cast<int*>(wgmma_shared + Shape::kTilesAt);  // of a stage
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(0xffffffff, threadIdx.x / kWarp, 0);
  const int row_tiles = (epilogue.rows + kM - 1) / kM, tiles = row_tiles * ((epilogue.n + kN - 1) / kN);
  InitRing<kStages>(stages, full, Shape::kConsumers);
  LetNextBegin();
  int stage = 0;
  uint32_t parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if (warp >= Shape::kConsumers) {
    if constexpr (Shape::kGiveRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == Shape::kConsumers && lane == 0) {
      // Weights do not depend on the kernel before.
      const auto load_weights = [&](int to, int from, int tile) {
        if constexpr (Shape::kTickets) tile_of[to] = tile;
        ArriveExpecting(full + to * 8, Shape::kStageBytes);
        LoadBox(stages + to * Shape::kStageBytes + Shape::kRowsBytes, weight, from, tile / row_tiles * kN,
                full + to * 8);
      };
      const int ahead = min(kStages, (k + kSlab - 1) / kSlab);
      for (int i = 0; i < ahead; ++i) load_weights(i, i * kSlab, blockIdx.x);
      AwaitPrevious();
      int loaded = ahead, tile = blockIdx.x;
      while (tile < tiles) {
        uint32_t ticket = 0;
        if (Shape::kTickets && tickets != nullptr) ticket = atomicAdd(tickets, 1);
        const int row0 = tile % row_tiles * kM;
        for (int from = 0; from < k; from += kSlab) {
          WaitFor(empty + stage * 8, parity ^ 1);  // at first at once: the phase before the first one is over
          if (loaded > 0) {
            --loaded;
          } else {
            load_weights(stage, from, tile);
          }
          LoadBox(stages + stage * Shape::kStageBytes, x, from, row0, full + stage * 8);
          advance();
        }
        // The tiles that blocks begin with take no ticket, and each block takes one that is too high.
        if (Shape::kTickets && tickets != nullptr) {
          if (ticket + 1 == static_cast<uint32_t>(tiles)) *tickets = 0;
          tile = static_cast<int>(ticket);
        }
        tile += static_cast<int>(gridDim.x);
      }
      if constexpr (Shape::kTickets) {
        WaitFor(empty + stage * 8, parity ^ 1);
        tile_of[stage] = tiles;
        Arrive(full + stage * 8);
      }
    }
  } else {
    if constexpr (Shape::kGiveRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    AwaitPrevious();  // for residuals, and for what is overwritten
    float* own = reinterpret_cast<float*>(wgmma_shared + kStages * Shape::kStageBytes + warp * Shape::kPassBytes);
    const int steps = k / kChunks / 16, g = lane / 4, t = lane % 4;
    // Each warp frees a stage for itself: its part of a product may end before the other warps'.
    const auto release = [&](int which) {
      if (lane == 0) Arrive(empty + which * 8);
    };
    const auto next_of = [&](int tile) {
      if constexpr (!Shape::kTickets) return tile + static_cast<int>(gridDim.x);
      WaitFor(full + stage * 8, parity);
      return tile_of[stage];
    };
    for (int tile = blockIdx.x; tile < tiles; tile = next_of(tile)) {
      float sum[kTogether][kN / 2] = {}, total[kN / 2] = {};
      int last = -1;  // the stage before, to be released
      uint64_t a = 0, b = 0;
      float2 own_bias = {};
      if constexpr (Shape::kInBackground) {
        const int j = tile / row_tiles * kN + static_cast<int>(threadIdx.x) % 128;
        if (epilogue.bias != nullptr) {
          own_bias = {epilogue.bias[min(j, epilogue.n - 1)], epilogue.bias[min(j + 128, epilogue.n - 1)]};
        }
      }
      const auto begin_slab = [&] {
        WaitFor(full + stage * 8, parity);
        const uint32_t rows_at = stages + stage * Shape::kStageBytes;
        a = Descriptor(rows_at + warp / 4 * 64 * kSlabRowBytes);
        b = Descriptor(rows_at + Shape::kRowsBytes);
      };
      const auto end_slab = [&] {
        CommitWgmma();
        WaitWgmma<1>();  // of the slab before
        if (last >= 0) release(last);
        last = stage;
        advance();
      };
      const auto multiply = [&](int piece, int step, int add) {
        constexpr uint64_t kLowRows = kM * kSlabRowBytes >> 4, kLowWeights = kN * kSlabRowBytes >> 4;
        const int at = step % kStepsOfSlab * 2;
        WgmmaStep<E>(sum[piece], a + at, b + at, add);
        if constexpr (kPlanes == 2) {
          WgmmaStep<E>(sum[piece], a + kLowRows + at, b + at, 1);
          WgmmaStep<E>(sum[piece], a + at, b + kLowWeights + at, 1);
        }
      };
      const auto pin = [&] {
#pragma unroll
        for (int piece = 0; piece < kTogether; ++piece) Pin(sum[piece]);
      };
      const auto add_pieces = [&] {
        CommitWgmma();
        WaitWgmma<0>();
        pin();
#pragma unroll
        for (int piece = 0; piece < kTogether; ++piece) {
#pragma unroll
          for (int e = 0; e < kN / 2; ++e) total[e] += sum[piece][e];
        }
        pin();
        FenceWgmma();
      };
      pin();
      FenceWgmma();
      ForPieces<kSteps, kTogether>(steps, kChunks / kTogether, begin_slab, multiply, end_slab, add_pieces);
      WaitWgmma<0>();
      pin();
      release(last);
      const int row = tile % row_tiles * kM + warp * 16, j0 = tile / row_tiles * kN;
      if constexpr (Shape::kInBackground) {
        StoreInBackground<Shape>(epilogue, to, total, own_bias, wgmma_shared, row - warp % 4 * 16, j0);
      } else {
#pragma unroll
        for (int column = 0; column < kN; column += Shape::kPass) {
          __syncwarp();  // the pass before has been read
#pragma unroll
          for (int i = 0; i < Shape::kPass; i += 8) {
            const float* from = total + (column + i) / 2;
            float* to_pass = own + g * Shape::kPassStride + i + 2 * t;
            *reinterpret_cast<float2*>(to_pass) = {from[0], from[1]};
            *reinterpret_cast<float2*>(to_pass + 8 * Shape::kPassStride) = {from[2], from[3]};
          }
          __syncwarp();
          StorePass<Shape>(epilogue, own, row, j0 + column);
        }
      }
    }
    if (Shape::kInBackground && threadIdx.x % 128 == 0) AwaitStores();
  }
#endif
}

int DivideUp(int a, int b) { return (a + b - 1) / b; }

// Whether StoreInBackground does what Epilogue::Store does.
template <typename T>
bool CanStoreInBackground(const Epilogue<T>& epilogue) {
  const bool floats = sizeof(T) == 4 || epilogue.float_output;
  return epilogue.ldy % (floats ? 4 : 8) == 0 && reinterpret_cast<uintptr_t>(epilogue.y) % 16 == 0 &&
         (epilogue.residual == nullptr || (floats && epilogue.residual == epilogue.y));
}

template <typename Shape, int kSteps, typename T>
void LaunchSteps(const Linear& linear, const WeightOf<T>* x, int64_t x_plane, int64_t ldx, const Epilogue<T>& epilogue,
                 int spare, uint32_t* tickets, cudaStream_t stream) {
  const auto kernel = LinearWgmmaKernel<Shape, kSteps, T>;
  static const cudaError_t raised =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kShared);
  CheckCuda(raised, "raising the shared memory of LinearWgmma");
  const CUtensorMap weight_map = MapOf(static_cast<const WeightOf<T>*>(linear.weight), linear.k, linear.n, linear.k,
                                       Shape::kPlanes, linear.plane, Shape::kN);
  const CUtensorMap x_map = MapOf(x, linear.k, epilogue.rows, ldx, Shape::kPlanes, x_plane, Shape::kM);
  CUtensorMap to = {};
  if constexpr (Shape::kInBackground) to = MapOfOutputs(epilogue);
  const int tiles = DivideUp(epilogue.rows, Shape::kM) * DivideUp(linear.n, Shape::kN);
  const int blocks = std::min(tiles, (Multiprocessors() - spare) * Shape::kBlocks);
  LaunchChained(kernel, blocks, Shape::kThreads, Shape::kShared, stream, "launching a matrix product", weight_map,
                x_map, to, linear.k, tiles > blocks ? tickets : nullptr, epilogue);
}

template <typename Shape, typename T>
void LaunchWgmma(const Linear& linear, const WeightOf<T>* x, int64_t x_plane, int64_t ldx, const Epilogue<T>& epilogue,
                 int spare, uint32_t* tickets, cudaStream_t stream) {
  WithSteps(linear.k, [&](auto steps) {
    LaunchSteps<Shape, decltype(steps)::value>(linear, x, x_plane, ldx, epilogue, spare, tickets, stream);
  });
}

// Rows x outputs that a block makes at a time. Of the smallest tiles three share a multiprocessor, or two, or one has
// it for itself: the fewer, the more of the sums' operands are on their way to it.
enum class WgmmaTile { k64x64Alone, k64x64Pairs, k64x64, k64x128, k128x128, k128x192 };

// The tile by which the busiest multiprocessor has least to do.
WgmmaTile ChooseTile(int rows, int n, int multiprocessors, bool in_background) {
  struct Candidate {
    WgmmaTile tile;
    int m, n;
    float cost;  // of an output: smaller tiles load more for each product (measured on an H200)
  };
  constexpr Candidate kCandidates[] = {{WgmmaTile::k128x192, 128, 192, 1.0f},
                                       {WgmmaTile::k128x128, 128, 128, 1.15f},
                                       {WgmmaTile::k64x128, 64, 128, 1.4f},
                                       {WgmmaTile::k64x64, 64, 64, 1.45f}};
  const auto tiles = [&](int m, int outputs) { return DivideUp(rows, m) * DivideUp(n, outputs); };
  if (tiles(64, 64) <= multiprocessors) return WgmmaTile::k64x64Alone;
  if (tiles(64, 64) <= 2 * multiprocessors) return WgmmaTile::k64x64Pairs;
  const auto cost = [&](const Candidate& candidate) {
    const int of_busiest = DivideUp(tiles(candidate.m, candidate.n), multiprocessors);
    return static_cast<float>(of_busiest * candidate.m * candidate.n) * candidate.cost;
  };
  return std::min_element(std::begin(kCandidates) + (in_background ? 0 : 1), std::end(kCandidates),
                          [&](const Candidate& a, const Candidate& b) { return cost(a) < cost(b); })
      ->tile;
}

template <typename E>
void LaunchShort(const Linear& linear, const E* x, int64_t x_plane, int64_t ldx, const Epilogue<E>& epilogue, int spare,
                 uint32_t* tickets, cudaStream_t stream) {
  const auto launch = [&](auto shape) {
    LaunchWgmma<decltype(shape)>(linear, x, x_plane, ldx, epilogue, spare, tickets, stream);
  };
  switch (ChooseTile(epilogue.rows, linear.n, Multiprocessors() - spare, CanStoreInBackground(epilogue))) {
    case WgmmaTile::k64x64Alone:
      return launch(WgmmaShape<1, 1, 64, 11, 1>());
    case WgmmaTile::k64x64Pairs:
      return launch(WgmmaShape<1, 1, 64, 6, 2>());
    case WgmmaTile::k64x64:
      return launch(WgmmaShape<1, 1, 64, 4, 3>());
    case WgmmaTile::k64x128:
      return launch(WgmmaShape<1, 1, 128, 4, 2>());
    case WgmmaTile::k128x128:
      return launch(WgmmaShape<1, 2, 128, 5, 1>());
    case WgmmaTile::k128x192:
      return launch(WgmmaShape<1, 2, 192, 4, 1>());
  }
}

}  // namespace

void LinearWgmma(const Linear& linear, const __nv_bfloat16* x, int64_t x_plane, int64_t ldx,
                 const Epilogue<__nv_bfloat16>& epilogue, int spare, uint32_t* tickets, cudaStream_t stream) {
  LaunchShort(linear, x, x_plane, ldx, epilogue, spare, tickets, stream);
}

void LinearWgmma(const Linear& linear, const __half* x, int64_t x_plane, int64_t ldx, const Epilogue<__half>& epilogue,
                 int spare, uint32_t* tickets, cudaStream_t stream) {
  LaunchShort(linear, x, x_plane, ldx, epilogue, spare, tickets, stream);
}

void LinearWgmma(const Linear& linear, const __nv_bfloat16* x, int64_t x_plane, int64_t ldx,
                 const Epilogue<float>& epilogue, int spare, uint32_t* tickets, cudaStream_t stream) {
  const auto tiles = [&](int outputs) { return DivideUp(epilogue.rows, 64) * DivideUp(linear.n, outputs); };
  if (tiles(64) <= Multiprocessors() - spare) {
    LaunchWgmma<WgmmaShape<2, 1, 64, 6, 1>>(linear, x, x_plane, ldx, epilogue, spare, tickets, stream);
  } else if (tiles(96) <= Multiprocessors() - spare) {
    LaunchWgmma<WgmmaShape<2, 1, 96, 5, 1>>(linear, x, x_plane, ldx, epilogue, spare, tickets, stream);
  } else {
    LaunchWgmma<WgmmaShape<2, 1, 64, 3, 2>>(linear, x, x_plane, ldx, epilogue, spare, tickets, stream);
  }
}

}  // namespace smt::cuda
