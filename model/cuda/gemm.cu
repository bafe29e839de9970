// Matrix products with one summation order for every number of rows (kernels.h).
//
// float32: a warp's lanes take 32 neighbouring outputs of the k-major weights, its rows stay in registers.
// bfloat16, float16: tensor cores, the weights being the 16-row operand so that a single row wastes only 7 of 8
// columns. split: float32 as the sum of two bfloat16 on the tensor cores, three products of the four, in float32 sums
// (Markidis et al., "NVIDIA Tensor Core Programmability, Performance & Precision", 2018).
#include <cooperative_groups.h>
#include <cuda_bf16.h>

#include "model/cuda/chain.cuh"
#include "model/cuda/epilogue.cuh"
#include "model/cuda/few_rows.cuh"
#include "model/cuda/gemm_apart.h"
#include "model/cuda/gemm_wgmma.h"
#include "model/cuda/kernels.h"
#include "model/cuda/tensor_core.cuh"

namespace smt::cuda {
namespace {

constexpr int kFloatChunks = 32;  // pieces of a float32 product

// Grid (ceil(n / 32), ceil(rows / kRows)); each of kWarps warps sums its share of the kFloatChunks pieces. Few rows
// take more warps, for loads in flight; many take fewer, for registers.
template <int kRows, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp)
    LinearFloat(const float* __restrict__ weight, int64_t ldw, const float* __restrict__ x, int64_t ldx, int k,
                Epilogue<float> epilogue) {
  __shared__ float partial[kFloatChunks][kRows][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int j = blockIdx.x * kWarp + lane, row0 = blockIdx.y * kRows;
  const int length = k / kFloatChunks;
  for (int chunk = warp; chunk < kFloatChunks; chunk += kWarps) {
    const int first = chunk * length;
    float sum[kRows] = {};
    const float* in[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) in[r] = x + static_cast<int64_t>(min(row0 + r, epilogue.rows - 1)) * ldx + first;
    const float* w = weight + first * ldw + j;
#pragma unroll 4
    for (int i = 0; i < length; i += 4) {
      float column[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) column[u] = w[(i + u) * ldw];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 v = *reinterpret_cast<const float4*>(in[r] + i);
        sum[r] = fmaf(v.x, column[0], sum[r]);
        sum[r] = fmaf(v.y, column[1], sum[r]);
        sum[r] = fmaf(v.z, column[2], sum[r]);
        sum[r] = fmaf(v.w, column[3], sum[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) partial[chunk][r][lane] = sum[r];
  }
  __syncthreads();
  for (int r = warp; r < kRows; r += kWarps) {
    float total = 0;
#pragma unroll
    for (int c = 0; c < kFloatChunks; ++c) total += partial[c][r][lane];
    epilogue.Store(row0 + r, j, total);
  }
}

template <int kTiles, typename E>
__global__ void __launch_bounds__(kFewRowsThreads)
    LinearFewRows(const E* __restrict__ weight, const E* __restrict__ x, int64_t ldx, int k, Epilogue<E> epilogue) {
  AwaitPrevious();
  LetNextBegin();
  __shared__ PieceSums<kTiles> pieces;
  const int j0 = blockIdx.x * 16, row0 = blockIdx.y * 8 * kTiles;
  float sum[kTiles][4] = {};
  SumPiece<kTiles>(weight + static_cast<int64_t>(j0) * k, k, x + row0 * ldx, ldx, epilogue.rows - row0, sum);
  AddPieces<kTiles>(pieces, sum, [&](int, int row, int j, float total) { epilogue.Store(row0 + row, j0 + j, total); });
}

template <int kTiles>
__global__ void __launch_bounds__(kFewRowsThreads)
    LinearFewRowsSplit(const __nv_bfloat16* __restrict__ weight, int64_t plane, const float* __restrict__ x,
                       int64_t ldx, int k, Epilogue<float> epilogue) {
  AwaitPrevious();
  LetNextBegin();
  __shared__ PieceSums<kTiles> pieces;
  const int j0 = blockIdx.x * 16, row0 = blockIdx.y * 8 * kTiles;
  float sum[kTiles][4] = {};
  SumPieceSplit<kTiles>(weight + static_cast<int64_t>(j0) * k, plane, k, x + row0 * ldx, ldx, epilogue.rows - row0,
                        sum);
  AddPieces<kTiles>(pieces, sum, [&](int, int row, int j, float total) { epilogue.Store(row0 + row, j0 + j, total); });
}

__global__ void SplitKernel(const float* __restrict__ x, int64_t ldx, int k, __nv_bfloat16* __restrict__ to,
                            int64_t plane) {
  AwaitPrevious();
  LetNextBegin();
  const float* from = x + blockIdx.x * ldx;
  uint32_t* high = reinterpret_cast<uint32_t*>(to + static_cast<int64_t>(blockIdx.x) * k);
  uint32_t* low = reinterpret_cast<uint32_t*>(to + plane + static_cast<int64_t>(blockIdx.x) * k);
  for (int i = threadIdx.x; i < k / 2; i += blockDim.x) {
    SplitPair(*reinterpret_cast<const float2*>(from + 2 * i), high[i], low[i]);
  }
}

// Many rows: tiles of kOutputs x kTileRows through shared memory; a warp makes 32 x 32 of them. A block takes the
// pieces one after the other, or, kPiecesApart, a cluster's kChunks blocks take one each and add them up through
// distributed shared memory, which fills the device with the tiles of a few hundred rows. kPlanes = 2: split weights
// and split rows.
constexpr int kOutputs = 64, kDepth = 64, kStride = kDepth + 8, kRowsOfWarp = 32;
constexpr int kParts = kOutputs / 32;  // of a warp, 16 outputs each: two warps side by side

template <int kPlanes_, int kTileRows_, bool kPiecesApart_>
struct ManyRows {
  static constexpr int kPlanes = kPlanes_, kTileRows = kTileRows_;
  static constexpr bool kPiecesApart = kPiecesApart_;
  static constexpr int kThreads = 2 * (kTileRows / kRowsOfWarp) * kWarp;
  static constexpr int kStages = kPlanes == 1 && !kPiecesApart ? 4 : 3;
  static constexpr int kRowsAt = kPlanes * kOutputs * kStride;  // in a stage, after the weights
  static constexpr int kStage = kPlanes * (kOutputs + kTileRows) * kStride;
  static constexpr int kShared = kStages * kStage * 2;
  static constexpr int kSumStride = kOutputs + 4;  // of the finished tile, float32 [rows][outputs]
  static_assert(kShared >= kTileRows * kSumStride * 4, "the finished tile takes the stages' place");
};

__device__ __forceinline__ void AddTo(float (&total)[kParts][4][4], float (&sum)[kParts][4][4]) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        total[part][tile][e] += sum[part][tile][e];
        sum[part][tile][e] = 0;
      }
    }
  }
}

template <typename Shape, typename T>
__global__ void __launch_bounds__(Shape::kThreads)
    LinearManyRows(const WeightOf<T>* __restrict__ weight, int64_t weight_plane, const WeightOf<T>* __restrict__ x,
                   int64_t x_plane, int64_t ldx, int k, Epilogue<T> epilogue) {
  using E = WeightOf<T>;
  constexpr int kPlanes = Shape::kPlanes, kTileRows = Shape::kTileRows;
  constexpr bool kPiecesApart = Shape::kPiecesApart;
  extern __shared__ __align__(16) std::byte shared_bytes[];
  auto* const shared = reinterpret_cast<E*>(shared_bytes);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int j0 = blockIdx.y * kOutputs, row0 = blockIdx.x * kTileRows;
  const int outputs_of_warp = warp % 2 * (16 * kParts), rows_of_warp = warp / 2 * kRowsOfWarp;
  const int piece = k / kChunks;
  const int first = kPiecesApart ? static_cast<int>(blockIdx.z) * piece : 0, length = kPiecesApart ? piece : k;
  const int blocks = (length + kDepth - 1) / kDepth;
  const auto load_weights = [&](int block) {
    if (block >= blocks) return;
    E* stage = shared + block % Shape::kStages * Shape::kStage;
    const int from = first + block * kDepth, columns = length - block * kDepth;
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      E* w = stage + plane * kOutputs * kStride;
#pragma unroll
      for (int at = threadIdx.x; at < kOutputs * 8; at += Shape::kThreads) {
        const int r = at / 8, c = at % 8 * 8;
        if (kPiecesApart && c >= columns) continue;
        CopyAsync(w + r * kStride + c, weight + plane * weight_plane + static_cast<int64_t>(j0 + r) * k + from + c);
      }
    }
  };
  const auto load_rows = [&](int block) {
    if (block < blocks) {
      E* stage = shared + block % Shape::kStages * Shape::kStage;
      const int from = first + block * kDepth, columns = length - block * kDepth;
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
        E* in = stage + Shape::kRowsAt + plane * kTileRows * kStride;
#pragma unroll
        for (int at = threadIdx.x; at < kTileRows * 8; at += Shape::kThreads) {
          const int r = at / 8, c = at % 8 * 8;
          if (kPiecesApart && c >= columns) continue;
          const int64_t row = min(row0 + r, epilogue.rows - 1);
          CopyAsync(in + r * kStride + c, x + plane * x_plane + row * ldx + from + c);
        }
      }
    }
    asm volatile("cp.async.commit_group;");
  };
  float sum[kParts][4][4] = {}, total[kParts][4][4] = {};
  int left = piece / 16;
  // Where this lane's part of ldmatrix begins: weights as [16 outputs][16], rows as two tiles of [8 rows][16].
  const int w_at = (outputs_of_warp + lane % 16) * kStride + lane / 16 * 8;
  const int in_at = Shape::kRowsAt + (rows_of_warp + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
  // Weights do not depend on the kernel before.
  for (int i = 0; i < Shape::kStages - 1; ++i) load_weights(i);
  AwaitPrevious();
  LetNextBegin();
  for (int i = 0; i < Shape::kStages - 1; ++i) load_rows(i);
  for (int block = 0; block < blocks; ++block) {
    asm volatile("cp.async.wait_group %0;" ::"n"(Shape::kStages - 2));
    __syncthreads();
    load_weights(block + Shape::kStages - 1);
    load_rows(block + Shape::kStages - 1);
    const E* stage = shared + block % Shape::kStages * Shape::kStage;
#pragma unroll
    for (int i = 0; i < kDepth; i += 16) {
      if (kPiecesApart && block * kDepth + i >= length) break;
      uint32_t a[kPlanes][kParts][4], b[kPlanes][2][4];
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          LoadMatrices(a[plane][part], stage + plane * kOutputs * kStride + w_at + part * 16 * kStride + i);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          LoadMatrices(b[plane][half], stage + plane * kTileRows * kStride + in_at + half * 16 * kStride + i);
        }
      }
      const auto multiply = [&](int plane_a, int plane_b) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
          for (int tile = 0; tile < 4; ++tile) {
            const uint32_t* pair = b[plane_b][tile / 2] + tile % 2 * 2;
            MultiplyAdd<E>(sum[part][tile], a[plane_a][part], pair[0], pair[1]);
          }
        }
      };
      multiply(0, 0);
      if constexpr (kPlanes == 2) {
        multiply(0, 1);
        multiply(1, 0);
      }
      if (!kPiecesApart && --left == 0) {
        left = piece / 16;
        AddTo(total, sum);
      }
    }
  }
  // Through shared memory, so that neighbouring lanes store neighbouring outputs.
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  float* tile_sums = reinterpret_cast<float*>(shared);
  const float(&done)[kParts][4][4] = kPiecesApart ? sum : total;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = rows_of_warp + tile * 8 + 2 * t + (e & 1), j = outputs_of_warp + part * 16 + g + (e / 2) * 8;
        tile_sums[r * Shape::kSumStride + j] = done[part][tile][e];
      }
    }
  }
  constexpr int kQuads = kTileRows * kOutputs / 4;
  if constexpr (kPiecesApart) {
#if __CUDA_ARCH__ >= 900
    const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
    cluster.sync();
    const float* parts[kChunks];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) parts[c] = cluster.map_shared_rank(tile_sums, c);
    for (int at = blockIdx.z * Shape::kThreads + threadIdx.x; at < kQuads; at += kChunks * Shape::kThreads) {
      const int r = at / (kOutputs / 4), j = at % (kOutputs / 4) * 4;
      float4 value = {0, 0, 0, 0};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const float4 part = *reinterpret_cast<const float4*>(parts[c] + r * Shape::kSumStride + j);
        value.x += part.x;
        value.y += part.y;
        value.z += part.z;
        value.w += part.w;
      }
      epilogue.StoreFour(row0 + r, j0 + j, value);
    }
    cluster.sync();  // the others read from this block
#endif
  } else {
    __syncthreads();
    for (int at = threadIdx.x; at < kQuads; at += Shape::kThreads) {
      const int r = at / (kOutputs / 4), j = at % (kOutputs / 4) * 4;
      epilogue.StoreFour(row0 + r, j0 + j, *reinterpret_cast<const float4*>(tile_sums + r * Shape::kSumStride + j));
    }
  }
}

int Ceil(int a, int b) { return (a + b - 1) / b; }

template <typename T>
Epilogue<T> EpilogueOf(const Linear& linear, const LinearCall& call) {
  return {linear.bias, call.y, call.ldy, call.float_output, call.residual, call.activation, call.rows, linear.n};
}

void RunFloat(const Linear& linear, const LinearCall& call, cudaStream_t stream) {
  const auto* weight = static_cast<const float*>(linear.weight);
  const auto* x = static_cast<const float*>(call.x);
  const int64_t ldw = static_cast<int64_t>(Ceil(linear.n, kWarp)) * kWarp;
  const Epilogue<float> epilogue = EpilogueOf<float>(linear, call);
  const auto launch = [&](auto kernel, int rows, int warps) {
    const dim3 grid(Ceil(linear.n, kWarp), Ceil(call.rows, rows));
    kernel<<<grid, warps * kWarp, 0, stream>>>(weight, ldw, x, call.ldx, linear.k, epilogue);
  };
  if (call.rows == 1) {
    launch(LinearFloat<1, 32>, 1, 32);
  } else if (call.rows <= 16) {
    launch(LinearFloat<4, 32>, 4, 32);
  } else {
    launch(LinearFloat<8, 16>, 8, 16);
  }
}

template <typename Shape, typename T>
void LaunchManyRows(const Linear& linear, const WeightOf<T>* x, int64_t x_plane, int64_t ldx,
                    const Epilogue<T>& epilogue, cudaStream_t stream) {
  const auto kernel = LinearManyRows<Shape, T>;
  static const cudaError_t raised =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kShared);
  CheckCuda(raised, "raising the shared memory of LinearManyRows");
  cudaLaunchConfig_t config = {};
  // Neighbouring blocks share their weights.
  config.gridDim =
      dim3(Ceil(epilogue.rows, Shape::kTileRows), Ceil(linear.n, kOutputs), Shape::kPiecesApart ? kChunks : 1);
  config.blockDim = Shape::kThreads;
  config.dynamicSmemBytes = Shape::kShared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  // Beside the short kernels of a window of few rows, blocks that come early only take the multiprocessors from them
  // (slide of one session: 0.575 instead of 0.535 ms on an H200).
  if (CanChain() && Shape::kPlanes == 2) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (Shape::kPiecesApart) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {1, 1, kChunks};
  }
  CheckCuda(cudaLaunchKernelEx(&config, kernel, static_cast<const WeightOf<T>*>(linear.weight), linear.plane, x,
                               x_plane, ldx, linear.k, epilogue),
            "launching a matrix product");
}

bool HasClusters() { return ComputeMajor() >= 9; }

// Blocks up to which the pieces go apart rather than leave a device of 132 multiprocessors idle (measured on an H200;
// split tiles take twice the shared memory).
template <int kPlanes>
constexpr int kBlocksApart = kPlanes == 1 ? 6 * 132 : 3 * 132;

template <int kPlanes, typename T>
void RunManyRows(const Linear& linear, const WeightOf<T>* x, int64_t x_plane, int64_t ldx, const Epilogue<T>& epilogue,
                 const LinearCall& call, cudaStream_t stream) {
  const auto tiles = [&](int rows) { return Ceil(epilogue.rows, rows) * Ceil(linear.n, 64); };
  const auto launch = [&](auto shape) { LaunchManyRows<decltype(shape)>(linear, x, x_plane, ldx, epilogue, stream); };
  const auto apart = [&](int rows) { return HasClusters() && tiles(rows) * kChunks <= kBlocksApart<kPlanes>; };
  // Pieces side by side pay where there are few tiles with much to sum (measured on an H200).
  const bool wgmma = HasWgmma() && (linear.k < 1024 || tiles(64) * kPlanes >= 36);
  if (wgmma) {
    LinearWgmma(linear, x, x_plane, ldx, epilogue, call.spare, call.tickets, stream);
  } else if (kPlanes == 1 && epilogue.rows <= 96 && apart(96)) {
    launch(ManyRows<1, 96, true>());  // a refill beside a column is 65 rows and some
  } else if (apart(64)) {
    launch(ManyRows<kPlanes, 64, true>());
  } else if (kPlanes == 1 && tiles(128) >= 2 * 132) {
    launch(ManyRows<1, 128, false>());
  } else {
    launch(ManyRows<kPlanes, 64, false>());
  }
}

template <typename E>
void RunShort(const Linear& linear, const LinearCall& call, cudaStream_t stream) {
  const auto* weight = static_cast<const E*>(linear.weight);
  const auto* x = static_cast<const E*>(call.x);
  const Epilogue<E> epilogue = EpilogueOf<E>(linear, call);
  const auto few = [&](auto kernel, int tiles) {
    const dim3 grid(Ceil(linear.n, 16), Ceil(call.rows, 8 * tiles));
    LaunchChained(kernel, grid, kChunks * kWarp, 0, stream, "launching a matrix product", weight, x, call.ldx, linear.k,
                  epilogue);
  };
  if (call.rows <= 8) {
    few(LinearFewRows<1, E>, 1);
  } else if (call.rows <= 16) {
    few(LinearFewRows<2, E>, 2);
  } else if (call.rows <= kMaxFewRows) {
    few(LinearFewRows<4, E>, 4);
  } else {
    RunManyRows<1>(linear, x, 0, call.ldx, epilogue, call, stream);
  }
}

void RunSplit(const Linear& linear, const LinearCall& call, cudaStream_t stream) {
  const auto* weight = static_cast<const __nv_bfloat16*>(linear.weight);
  const auto* x = static_cast<const float*>(call.x);
  const Epilogue<float> epilogue = EpilogueOf<float>(linear, call);
  const auto few = [&](auto kernel, int tiles) {
    const dim3 grid(Ceil(linear.n, 16), Ceil(call.rows, 8 * tiles));
    LaunchChained(kernel, grid, kChunks * kWarp, 0, stream, "launching a matrix product", weight, linear.plane, x,
                  call.ldx, linear.k, epilogue);
  };
  if (call.split.high != nullptr) {
    RunManyRows<2>(linear, call.split.high, call.split.plane, call.ldx, epilogue, call, stream);
  } else if (call.rows <= 8) {
    few(LinearFewRowsSplit<1>, 1);
  } else if (call.rows <= 16) {
    few(LinearFewRowsSplit<2>, 2);
  } else if (call.rows <= kMaxFewRows) {
    few(LinearFewRowsSplit<4>, 4);
  } else {
    auto* planes = static_cast<__nv_bfloat16*>(call.scratch);
    const int64_t plane = static_cast<int64_t>(call.rows) * linear.k;
    LaunchChained(SplitKernel, call.rows, 256, 0, stream, "launching a split", x, call.ldx, linear.k, planes, plane);
    RunManyRows<2>(linear, planes, plane, linear.k, epilogue, call, stream);
  }
}

}  // namespace

namespace {

int AskDevice(cudaDeviceAttr attribute) {
  int device = 0, found = 0;
  CheckCuda(cudaGetDevice(&device), "asking for the device");
  CheckCuda(cudaDeviceGetAttribute(&found, attribute, device), "asking for the device");
  return found;
}

}  // namespace

int Multiprocessors() {
  static const int count = AskDevice(cudaDevAttrMultiProcessorCount);
  return count;
}

int ComputeMajor() {
  static const int major = AskDevice(cudaDevAttrComputeCapabilityMajor);
  return major;
}

void RunLinear(const Linear& linear, const LinearCall& call, cudaStream_t stream) {
  if (call.rows == 0) return;
  if (linear.type == Type::kFloat32) {
    RunFloat(linear, call, stream);
  } else if (linear.type == Type::kSplit) {
    RunSplit(linear, call, stream);
  } else if (linear.type == Type::kFloat16) {
    RunShort<__half>(linear, call, stream);
  } else {
    RunShort<__nv_bfloat16>(linear, call, stream);
  }
  CheckCuda(cudaGetLastError(), "launching a matrix product");
}

bool CanLeaveAddends() { return HasWgmma(); }

Addends RunLinearApart(const Linear& linear, const LinearCall& call, const AddendRoom& room, cudaStream_t stream) {
  const int64_t stride = call.rows * call.ldy;
  const int blocks = HasWgmma() && call.rows > 0 && kMaxAddends * stride <= room.floats
                         ? BlocksApart(linear, call.rows, call.spare)
                         : 0;
  if (blocks == 0) {
    RunLinear(linear, call, stream);
    return {};
  }
  const void* x = linear.type == Type::kSplit ? call.split.high : call.x;
  const int count =
      LinearApart(linear, x, call.split.plane, call.ldx, call.rows, blocks, room.at, stride, call.ldy, stream);
  return {.at = room.at, .stride = stride, .ld = call.ldy, .count = count};
}

}  // namespace smt::cuda
