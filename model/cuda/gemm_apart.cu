// Compiled for sm_90a alone.
//
// A block multiplies a tile over its share of the pieces, each in registers of its own, so that the tensor cores wait
// for none of them; its weights are on their way before the rows are there. That blocks add up each other's pieces in
// the shared memory of a cluster takes longer than all the rest: what reads the outputs adds them up, in passing.
#include "model/cuda/gemm_apart.h"

#include "model/cuda/chain.cuh"
#include "model/cuda/tensor_core.cuh"
#include "model/cuda/tensor_map.h"
#include "model/cuda/wgmma.cuh"

namespace smt::cuda {
namespace {

constexpr int kRows = 64;  // of a tile
constexpr int kConsumers = 4, kThreads = (kConsumers + 1) * kWarp;

constexpr int kBlocks = 2;  // of a multiprocessor: those of the next product come while these still run

template <int kPlanes_, int kN_, int kApart_>
struct ApartShape {
  static constexpr int kPlanes = kPlanes_, kN = kN_, kApart = kApart_, kStages = kPlanes == 2 ? 3 : 6;
  static constexpr int kRowsBytes = kPlanes * kRows * kSlabRowBytes, kWeightsBytes = kPlanes * kN * kSlabRowBytes;
  static constexpr int kStageBytes = kRowsBytes + kWeightsBytes;
  static constexpr int kPieces = kChunks / kApart;  // of a block
  static constexpr int kBarriersAt = kStages * kStageBytes;
  static constexpr int kShared = kBarriersAt + 2 * kStages * 8;
};

// kApart blocks a tile; the tiles of the same outputs are neighbours and share weights.
template <typename Shape, int kSteps, typename E>
__global__ void __launch_bounds__(kThreads, kBlocks)
    LinearApartKernel(const __grid_constant__ CUtensorMap weight, const __grid_constant__ CUtensorMap x, int k,
                      int rows, int n, float* to, int64_t stride, int64_t ld) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kPlanes = Shape::kPlanes, kN = Shape::kN, kApart = Shape::kApart, kStages = Shape::kStages;
  constexpr int kPieces = Shape::kPieces;
  extern __shared__ __align__(1024) std::byte apart_shared[];  // the swizzle wants the 1024
  const uint32_t stages = SharedAddress(apart_shared);
  const uint32_t full = stages + Shape::kBarriersAt, empty = full + kStages * 8;
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(0xffffffff, threadIdx.x / kWarp, 0);
  const int rank = static_cast<int>(blockIdx.x) % kApart, tile = static_cast<int>(blockIdx.x) / kApart;
  const int row_tiles = (rows + kRows - 1) / kRows;
  const int row0 = tile % row_tiles * kRows, j0 = tile / row_tiles * kN;
  const int columns = k / kApart, first = rank * columns, slabs = (columns + kSlab - 1) / kSlab;
  InitRing<kStages>(stages, full, kConsumers);
  LetNextBegin();
  int stage = 0;
  uint32_t parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if (warp == kConsumers) {
    if (lane > 0) return;
    const auto load_weights = [&](int to_stage, int slab) {
      ArriveExpecting(full + to_stage * 8, Shape::kStageBytes);
      LoadBox(stages + to_stage * Shape::kStageBytes + Shape::kRowsBytes, weight, first + slab * kSlab, j0,
              full + to_stage * 8);
    };
    const int ahead = min(kStages, slabs);
    for (int i = 0; i < ahead; ++i) load_weights(i, i);
    AwaitPrevious();
    for (int slab = 0; slab < slabs; ++slab) {
      if (slab >= kStages) {
        WaitFor(empty + stage * 8, parity ^ 1);
        load_weights(stage, slab);
      }
      LoadBox(stages + stage * Shape::kStageBytes, x, first + slab * kSlab, row0, full + stage * 8);
      advance();
    }
    return;
  }
  float sum[kPieces][kN / 2] = {};
  int last = -1;  // the stage before
  uint64_t a = 0, b = 0;
  const auto begin_slab = [&] {
    WaitFor(full + stage * 8, parity);
    a = Descriptor(stages + stage * Shape::kStageBytes);
    b = Descriptor(stages + stage * Shape::kStageBytes + Shape::kRowsBytes);
  };
  const auto end_slab = [&] {
    CommitWgmma();
    if (slabs > kStages) {
      WaitWgmma<1>();  // of the slab before
      if (last >= 0 && lane == 0) Arrive(empty + last * 8);
    }
    last = stage;
    advance();
  };
  const auto multiply = [&](int piece, int step, int add) {
    constexpr uint64_t kLowRows = kRows * kSlabRowBytes >> 4, kLowWeights = kN * kSlabRowBytes >> 4;
    const int at = step % kStepsOfSlab * 2;
    WgmmaStep<E>(sum[piece], a + at, b + at, add);
    if constexpr (kPlanes == 2) {
      WgmmaStep<E>(sum[piece], a + kLowRows + at, b + at, 1);
      WgmmaStep<E>(sum[piece], a + at, b + kLowWeights + at, 1);
    }
  };
  const auto pin = [&] {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) Pin(sum[piece]);
  };
  pin();
  FenceWgmma();
  ForPieces<kSteps, kPieces>(k / kChunks / 16, 1, begin_slab, multiply, end_slab, [] {});
  WaitWgmma<0>();
  pin();
  AwaitPrevious();  // nothing reads what is overwritten any more
  const int row = row0 + warp * 16 + lane / 4, j = j0 + lane % 4 * 2;
  const auto store = [&](const float(&of)[kN / 2], int addend) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + 8 * half >= rows) continue;
      float* at = to + addend * stride + (row + 8 * half) * ld + j;
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        if (j + 8 * i < n) *reinterpret_cast<float2*>(at + 8 * i) = {of[4 * i + 2 * half], of[4 * i + 2 * half + 1]};
      }
    }
  };
  if (rank == 0) {
    float total[kN / 2];
#pragma unroll
    for (int e = 0; e < kN / 2; ++e) {
      total[e] = 0.0f;
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) total[e] += sum[piece][e];
    }
    store(total, 0);
  } else {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) store(sum[piece], 1 + (rank - 1) * kPieces + piece);
  }
#endif
}

// Outputs of a tile. The narrow one is for products of so few outputs that blocks are idle anyway, the wide one for
// such as would have two blocks on some multiprocessors and one on others.
constexpr int kOutputs = 64, kFewOutputs = 32, kManyOutputs = 96;
int OutputsOfTile(const Linear& linear) {
  return linear.type == Type::kSplit && linear.n <= 3 * kFewOutputs ? kFewOutputs : kOutputs;
}
int TilesOf(const Linear& linear, int rows, int outputs) {
  return (rows + kRows - 1) / kRows * ((linear.n + outputs - 1) / outputs);
}

template <typename Shape, int kSteps, typename E>
int Launch(const Linear& linear, const E* x, int64_t x_plane, int64_t ldx, int rows, float* to, int64_t stride,
           int64_t ld, cudaStream_t stream) {
  const auto kernel = LinearApartKernel<Shape, kSteps, E>;
  static const cudaError_t raised =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kShared);
  CheckCuda(raised, "raising the shared memory of LinearApart");
  const CUtensorMap weight_map = MapOf(static_cast<const E*>(linear.weight), linear.k, linear.n, linear.k,
                                       Shape::kPlanes, linear.plane, Shape::kN);
  const CUtensorMap x_map = MapOf(x, linear.k, rows, ldx, Shape::kPlanes, x_plane, kRows);
  const int tiles = TilesOf(linear, rows, Shape::kN);
  LaunchChained(kernel, static_cast<unsigned>(Shape::kApart * tiles), kThreads, Shape::kShared, stream,
                "launching a matrix product", weight_map, x_map, linear.k, rows, linear.n, to, stride, ld);
  return 1 + (Shape::kApart - 1) * Shape::kPieces;
}

}  // namespace

int BlocksApart(const Linear& linear, int rows, int spare) {
  if (linear.type == Type::kFloat32) return 0;
  const int outputs = OutputsOfTile(linear);
  const int tiles = TilesOf(linear, rows, outputs);
  const int room = kBlocks * (Multiprocessors() - spare);
  for (const int blocks : {8, 4, 2}) {
    if (tiles * blocks <= room) return outputs == kFewOutputs && blocks < 8 ? 0 : blocks;
  }
  return 0;
}

int LinearApart(const Linear& linear, const void* x, int64_t x_plane, int64_t ldx, int rows, int blocks, float* to,
                int64_t stride, int64_t ld, cudaStream_t stream) {
  const auto launch = [&](auto shape, auto number) {
    using E = decltype(number);
    using Shape = decltype(shape);
    return WithSteps(linear.k, [&](auto steps) {
      return Launch<Shape, decltype(steps)::value, E>(linear, static_cast<const E*>(x), x_plane, ldx, rows, to, stride,
                                                      ld, stream);
    });
  };
  const auto of_short = [&](auto number) {
    if (blocks == 2) return launch(ApartShape<1, kOutputs, 2>(), number);
    if (blocks == 4) return launch(ApartShape<1, kOutputs, 4>(), number);
    return launch(ApartShape<1, kOutputs, 8>(), number);
  };
  if (linear.type == Type::kFloat16) return of_short(__half());
  if (linear.type == Type::kBfloat16) return of_short(__nv_bfloat16());
  const __nv_bfloat16 number = {};
  if (OutputsOfTile(linear) == kFewOutputs) return launch(ApartShape<2, kFewOutputs, 8>(), number);
  if (blocks == 2) return launch(ApartShape<2, kOutputs, 2>(), number);
  const bool wide = TilesOf(linear, rows, kOutputs) * blocks > Multiprocessors() &&
                    TilesOf(linear, rows, kManyOutputs) * blocks <= Multiprocessors();
  if (blocks == 4) {
    return wide ? launch(ApartShape<2, kManyOutputs, 4>(), number) : launch(ApartShape<2, kOutputs, 4>(), number);
  }
  return wide ? launch(ApartShape<2, kManyOutputs, 8>(), number) : launch(ApartShape<2, kOutputs, 8>(), number);
}

}  // namespace smt::cuda
