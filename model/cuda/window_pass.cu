// A pass of few rows through the whole transformer as one kernel (kernels.h, WindowPass). Up to eight rows are
// normalized by every block for itself; more have a phase of their own for it.
#include <algorithm>

#include "model/cuda/epilogue.cuh"
#include "model/cuda/grid.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/window.cuh"

namespace smt::cuda {
namespace {

template <int kTiles, int kWidth>
__global__ void __launch_bounds__(kFewRowsThreads, 1)
    WindowPassKernel(const __grid_constant__ WindowPass pass, uint32_t* arrived, uint32_t base) {
  using Memory = BlockMemory<kTiles, __nv_bfloat16>;
  extern __shared__ __align__(16) std::byte shared[];
  auto& pieces = *reinterpret_cast<PieceSums<kTiles>*>(shared);
  std::byte* const work = shared + Memory::kPieces;
  std::byte* const ring_memory = work + pass.work_bytes;
  auto* const full = reinterpret_cast<uint64_t*>(ring_memory + pass.ring_bytes);
  std::byte* end = ring_memory + pass.ring_bytes + Memory::kBarriers;
  const BlockWeights* const blocks = Keep(pass.blocks, pass.layers, end);
  const Group* const groups = Keep(pass.groups, pass.group_count, end);
  __syncthreads();
  const auto linear_at = [&](int index) {
    return index < 4 * pass.layers ? &blocks[index / 4].qkv + index % 4 : nullptr;
  };
  WeightRing<decltype(linear_at)> ring(ring_memory, static_cast<uint32_t>(pass.ring_bytes), full, linear_at);
  GridBarrier grid(arrived, base);
  const int warp = threadIdx.x / kWarp, d = pass.cache.d;
  // Neighbouring tasks go to different multiprocessors.
  const int grid_warp = warp * gridDim.x + blockIdx.x, grid_warps = kChunks * gridDim.x;
  float* x = pass.x;
  int rows = pass.row_count;

  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    float* to = x + row * pass.ld;
    if (pass.embedding_type == Type::kBfloat16) {
      EmbedRow(pass.rows[row], pass.slots, static_cast<const __nv_bfloat16*>(pass.embeddings), pass.ld_embeddings,
               pass.positions, d, true, to);
    } else {
      EmbedRow(pass.rows[row], pass.slots, static_cast<const float*>(pass.embeddings), pass.ld_embeddings,
               pass.positions, d, true, to);
    }
  }
  grid.Wait();

  const __nv_bfloat16* normed = pass.normed;
  int64_t ld_normed = pass.ld;
  const auto normalize = [&](const Norm& norm) {
    if constexpr (kTiles == 1) {
      auto* own = reinterpret_cast<__nv_bfloat16*>(work);
      ld_normed = pass.ld + Memory::kRowPad;
      if (warp < rows) {
        __nv_bfloat16* to = own + warp * ld_normed;
        NormalizeRow(x + warp * pass.ld, d, norm.weight, norm.bias, pass.epsilon, to);
        for (int64_t i = d + threadIdx.x % kWarp; i < pass.ld; i += kWarp) to[i] = __nv_bfloat16(0.0f);
      }
      normed = own;
      __syncthreads();
    } else {
      for (int row = grid_warp; row < rows; row += grid_warps) {
        NormalizeRow(x + row * pass.ld, d, norm.weight, norm.bias, pass.epsilon, pass.normed + row * pass.ld);
      }
      grid.Wait();
    }
  };
  const auto product = [&](const Linear& linear, const __nv_bfloat16* in, int64_t ldx, void* y, int64_t ldy,
                           const float* residual, Activation activation) {
    const Epilogue<__nv_bfloat16> epilogue = {linear.bias, y,          ldy,  residual != nullptr,
                                              residual,    activation, rows, linear.n};
    GridLinear<kTiles>(ring, linear, in, ldx, rows, pieces, epilogue);
  };

  for (int layer = 0; layer < pass.layers; ++layer) {
    const BlockWeights& block = blocks[layer];
    const bool last = layer + 1 == pass.layers;
    // The last layer's keys and values are all that later columns need of rows before a group's last.
    const bool only_last = last && pass.group_count < rows;
    // Keys and values of other columns, on their way into the cache.
    for (int index = blockIdx.x; index < pass.group_count; index += gridDim.x) {
      if (threadIdx.x == 0 && groups[index].first_key > 0) {
        PrefetchL2(static_cast<const __nv_bfloat16*>(pass.cache.base) + groups[index].slot * pass.cache.slot_stride +
                       layer * pass.cache.layer_stride,
                   static_cast<uint32_t>(2 * pass.cache.layer_stride));
      }
    }
    normalize(block.norm_1);
    product(block.qkv, normed, ld_normed, pass.qkv, pass.ld_qkv, nullptr, Activation::kNone);
    grid.Wait();

    const GroupAttentionCall call = {
        pass.cache,       layer,     pass.n,        pass.qkv, pass.ld_qkv, 1.0f / sqrtf(static_cast<float>(kWidth)),
        pass.keep_tokens, only_last, pass.attended, pass.ld};
    for (int task = blockIdx.x; task < pass.group_count * pass.heads; task += gridDim.x) {
      const int group = task / pass.heads;
      AttendGroup<kWidth, kFewRowsThreads>(call, groups[group], group, task % pass.heads, work);
      __syncthreads();
    }
    if (only_last) {
      for (int index = grid_warp; index < pass.group_count; index += grid_warps) {
        const Group& group = groups[index];
        const float* from = x + (group.first_row + group.rows - 1) * pass.ld;
        for (int i = threadIdx.x % kWarp; i < d; i += kWarp) pass.x_wanted[index * pass.ld + i] = from[i];
      }
      x = pass.x_wanted;
      rows = pass.group_count;
    }
    grid.Wait();

    product(block.proj, pass.attended, pass.ld, x, pass.ld, x, Activation::kNone);
    grid.Wait();

    normalize(block.norm_2);
    product(block.fc, normed, ld_normed, pass.inner, pass.ld_inner, nullptr, pass.activation);
    grid.Wait();

    product(block.mlp_proj, pass.inner, pass.ld_inner, x, pass.ld, x, Activation::kNone);
    grid.Wait();
  }
  for (int row = grid_warp; row < rows; row += grid_warps) {
    NormalizeRow(x + row * pass.ld, d, pass.norm_f.weight, pass.norm_f.bias, pass.epsilon,
                 pass.outputs + pass.to_slots[row] * pass.ld);
  }
}

template <int kTiles, int kWidth>
BlockMemory<kTiles, __nv_bfloat16> MemoryFor(int64_t ld, int layers) {
  return {ld, GroupAttention<kWidth>::kShared, KeptBytes<BlockWeights>(layers) + KeptBytes<Group>(kMaxWindowPassRows)};
}

template <int kTiles, int kWidth>
void Launch(WindowPass pass, Arrivals* arrivals, cudaStream_t stream) {
  const auto memory = MemoryFor<kTiles, kWidth>(pass.ld, pass.layers);
  pass.work_bytes = memory.work;
  pass.ring_bytes = memory.ring;
  LaunchOnAll(WindowPassKernel<kTiles, kWidth>, pass, memory.bytes(), arrivals, 1 + pass.layers * (kTiles == 1 ? 5 : 7),
              stream);
}

template <int kWidth>
void LaunchFor(const WindowPass& pass, Arrivals* arrivals, cudaStream_t stream) {
  if (pass.row_count <= 8) {
    Launch<1, kWidth>(pass, arrivals, stream);
  } else if (pass.row_count <= 16) {
    Launch<2, kWidth>(pass, arrivals, stream);
  } else {
    Launch<4, kWidth>(pass, arrivals, stream);
  }
}

}  // namespace

bool CanRunWindowPass(const Cache& cache, int heads, int inner, int layers) {
  if (!CanAttendGroups(cache, heads) || !CanLaunchOnAll() || cache.layer_stride % 8 != 0) return false;
  const int ld = Padded(cache.d), k = std::max(ld, Padded(inner));
  return MemoryFor<1, 64>(ld, layers).Holds(k) && MemoryFor<4, 64>(ld, layers).Holds(k);
}

void RunWindowPass(const WindowPass& pass, Arrivals* arrivals, cudaStream_t stream) {
  if (pass.cache.d / pass.heads == 64) {
    LaunchFor<64>(pass, arrivals, stream);
  } else {
    LaunchFor<32>(pass, arrivals, stream);
  }
}

}  // namespace smt::cuda
