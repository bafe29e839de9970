// A pass of few rows through the whole transformer as one kernel (kernels.h, WindowPass). Up to eight rows are
// normalized by every block for itself; more have a phase of their own for it.
#include <algorithm>

#include "model/cuda/attention.cuh"
#include "model/cuda/epilogue.cuh"
#include "model/cuda/grid.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/window.cuh"

namespace smt::cuda {
namespace {

template <int kTiles, int kWidth, typename E>
__global__ void __launch_bounds__(kFewRowsThreads, 1)
    WindowPassKernel(const __grid_constant__ WindowPass pass, uint32_t* arrived, uint32_t base) {
  using Memory = BlockMemory<kTiles, E>;
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ float norm_sums[2][kNormParts];
  auto& pieces = *reinterpret_cast<PieceSums<kTiles>*>(shared);
  std::byte* const work = shared + Memory::kPieces;
  std::byte* const ring_memory = work + pass.work_bytes;
  auto* const full = reinterpret_cast<uint64_t*>(ring_memory + pass.ring_bytes);
  std::byte* kept = ring_memory + pass.ring_bytes + Memory::kBarriers;
  const BlockWeights* const blocks = Keep(pass.blocks, pass.layers, kept);
  const Group* const groups = Keep(pass.groups, pass.group_count, kept);
  __syncthreads();
  const auto tasks_at = [&](int index) -> GridTasks {
    return {index < 4 * pass.layers ? &blocks[index / 4].qkv + index % 4 : nullptr, static_cast<int>(blockIdx.x),
            static_cast<int>(gridDim.x)};
  };
  WeightRing<decltype(tasks_at)> ring(ring_memory, static_cast<uint32_t>(pass.ring_bytes), full, tasks_at);
  GridBarrier grid(arrived, base);
  if (threadIdx.x >= kWarp) ring.Issue();
  const auto wait = [&] { grid.Wait([&] { ring.Issue(); }); };
  const int warp = threadIdx.x / kWarp, d = pass.cache.d;
  // Neighbouring tasks go to different multiprocessors.
  const int grid_warp = warp * gridDim.x + blockIdx.x, grid_warps = kChunks * gridDim.x;
  float* x = pass.x;
  int rows = pass.row_count;

  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    float* to = x + row * pass.ld;
    if (pass.embedding_type == Type::kBfloat16) {
      EmbedRow(pass.rows[row], pass.slots, pass.rings, static_cast<const __nv_bfloat16*>(pass.embeddings),
               pass.ld_embeddings, pass.positions, d, pass.cache.type, to);
    } else {
      EmbedRow(pass.rows[row], pass.slots, pass.rings, static_cast<const float*>(pass.embeddings), pass.ld_embeddings,
               pass.positions, d, pass.cache.type, to);
    }
  }
  wait();

  // The parts of all layers in one loop, each written once: the kernel has to stay in the instruction cache.
  for (int index = 0;; ++index) {
    const int layer = index / 4, part = index % 4;
    const bool end = layer == pass.layers;  // but for the last norm
    const BlockWeights& block = blocks[layer];
    const E* in = static_cast<const E*>(part == 1 ? pass.attended : part == 3 ? pass.inner : pass.normed);
    int64_t ld_in = part == 3 ? pass.ld_inner : pass.ld;

    if (part == 0 && !end && blockIdx.x == gridDim.x - 1 && warp == 0) {
      // Vectors that all blocks will ask for at once, on their way into the cache.
      const int lane = threadIdx.x % kWarp;
      const BlockWeights& next = blocks[min(layer + 1, pass.layers - 1)];
      const float* const norms[4] = {block.norm_2.weight, block.norm_2.bias, next.norm_1.weight, next.norm_1.bias};
      if (lane < 4) {
        if (norms[lane] != nullptr) PrefetchL2(norms[lane], d * 4 / 16 * 16);
      } else if (lane < 8) {
        const Linear& linear = lane == 4 ? next.qkv : (&block.qkv)[lane - 4];
        if (linear.bias != nullptr) PrefetchL2(linear.bias, linear.n * 4 / 16 * 16);
      }
    }
    if (part == 0 && !end) {
      // Keys and values of other columns, on their way into the cache.
      for (int at = blockIdx.x; at < pass.group_count; at += gridDim.x) {
        if (threadIdx.x == 0 && groups[at].first_key > 0) {
          PrefetchL2(static_cast<const E*>(pass.cache.base) + groups[at].slot * pass.cache.slot_stride +
                         layer * pass.cache.layer_stride,
                     static_cast<uint32_t>(2 * pass.cache.layer_stride));
        }
      }
    }
    if (part == 1) {
      // The last layer's keys and values are all that later columns need of rows before a group's last.
      const bool only_last = layer + 1 == pass.layers && pass.group_count < rows;
      const GroupAttentionCall<E> call = {.cache = pass.cache,
                                          .layer = layer,
                                          .n = pass.n,
                                          .qkv = static_cast<const E*>(pass.qkv),
                                          .ld = pass.ld_qkv,
                                          .scale = pass.scale,
                                          .keep_tokens = pass.keep_tokens,
                                          .only_last = only_last,
                                          .out = static_cast<E*>(pass.attended),
                                          .ld_out = pass.ld};
      for (int task = blockIdx.x; task < pass.group_count * pass.heads; task += gridDim.x) {
        const int group = task / pass.heads;
        // What the cache has is on its way while the others make keys and values.
        AttendGroup<kWidth, kFewRowsThreads, false>(call, groups[group], group, task % pass.heads, work, [&] {
          if (task == blockIdx.x) wait();
        });
        __syncthreads();
      }
      if (blockIdx.x >= pass.group_count * pass.heads) wait();
      if (only_last) {
        for (int at = grid_warp; at < pass.group_count; at += grid_warps) {
          const float* from = x + (groups[at].first_row + groups[at].rows - 1) * pass.ld;
          for (int i = threadIdx.x % kWarp; i < d; i += kWarp) pass.x_wanted[at * pass.ld + i] = from[i];
        }
        x = pass.x_wanted;
        rows = pass.group_count;
      }
      wait();
    }
    if (kTiles == 1 && part % 2 == 1) {
      auto* const staged = reinterpret_cast<E*>(work);
      const int k = static_cast<int>(ld_in);
      StageRows(in, ld_in, rows, k, staged, k + Memory::kRowPad);
      ld_in = k + Memory::kRowPad;
      in = staged;
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      __syncthreads();
    }
    if (part % 2 == 0) {
      const Norm& norm = end ? pass.norm_f : part == 0 ? block.norm_1 : block.norm_2;
      // All rows for every block, or each row for one.
      const bool own = kTiles == 1 && !end;
      const int k_pad = static_cast<int>(pass.ld);
      auto* const own_rows = reinterpret_cast<E*>(work);
      if (own) {
        ld_in = pass.ld + Memory::kRowPad;
        for (int at = threadIdx.x; at < rows * (k_pad - d); at += kFewRowsThreads) {
          own_rows[at / (k_pad - d) * ld_in + d + at % (k_pad - d)] = static_cast<E>(0.0f);
        }
      }
      // A warp has a row; of one or two rows a part.
      static_assert(kFewRowsThreads == kNormThreads);
      const bool together = own && rows <= 2 && CanNormalizeTogether(d);
      if (together) {
        const int column = 4 * static_cast<int>(threadIdx.x), from = column < d ? column : 0;
        const Four w = *reinterpret_cast<const Four*>(norm.weight + from);
        const Four b = norm.bias != nullptr ? *reinterpret_cast<const Four*>(norm.bias + from) : Four{};
#pragma unroll 1
        for (int row = 0; row < rows; ++row) {
          const Four v = *reinterpret_cast<const Four*>(x + row * pass.ld + from);
          NormalizeTogether(v, column < d, d, w, b, norm.bias != nullptr, pass.epsilon, norm_sums,
                            own_rows + row * ld_in);
          __syncthreads();
        }
      }
      for (int row = own ? warp : grid_warp; row < rows && !together; row += own ? kChunks : grid_warps) {
        E* to = own   ? own_rows + row * ld_in
                : end ? static_cast<E*>(pass.outputs) + pass.to_slots[row] * pass.ld
                      : static_cast<E*>(pass.normed) + row * pass.ld;
        NormalizeRow(x + row * pass.ld, d, norm.weight, norm.bias, pass.epsilon, to);
      }
      if (end) break;
      if (own) {
        in = own_rows;
        if (!together) __syncthreads();
      } else {
        wait();
      }
    }
    const Linear& linear = (&block.qkv)[part];
    const bool onto_x = part % 2 == 1;
    const Epilogue<E> epilogue = {.bias = linear.bias,
                                  .y = onto_x      ? static_cast<void*>(x)
                                       : part == 0 ? pass.qkv
                                                   : pass.inner,
                                  .ldy = onto_x      ? pass.ld
                                         : part == 0 ? pass.ld_qkv
                                                     : pass.ld_inner,
                                  .float_output = onto_x,
                                  .residual = onto_x ? x : nullptr,
                                  .activation = part == 2 ? pass.activation : Activation::kNone,
                                  .rows = rows,
                                  .n = linear.n};
    GridProduct<kTiles>(
        ring, tasks_at(index), in, ld_in, rows, pieces, [&](int row, int j) { return epilogue.Load(row, j); },
        [&](int row, int j, float sum, float2 added) { epilogue.Store(row, j, sum, added); });
    if (part > 0) wait();  // attention waits for qkv
  }
}

template <int kTiles, int kWidth>
BlockMemory<kTiles, uint16_t> MemoryFor(int64_t k, int layers) {
  return {k, GroupAttention<kWidth>::kShared, KeptBytes<BlockWeights>(layers) + KeptBytes<Group>(kMaxWindowPassRows)};
}

template <int kTiles, int kWidth, typename E>
void Launch(WindowPass pass, Arrivals* arrivals, int spare, cudaStream_t stream) {
  const auto memory = MemoryFor<kTiles, kWidth>(std::max(pass.ld, pass.ld_inner), pass.layers);
  pass.work_bytes = memory.work;
  pass.ring_bytes = memory.ring;
  LaunchOnAll(WindowPassKernel<kTiles, kWidth, E>, memory.bytes(), arrivals, 1 + pass.layers * (kTiles == 1 ? 5 : 7),
              Multiprocessors() - spare, stream, pass);
}

template <int kWidth, typename E>
void LaunchFor(const WindowPass& pass, Arrivals* arrivals, int spare, cudaStream_t stream) {
  if (pass.row_count <= 8) {
    Launch<1, kWidth, E>(pass, arrivals, spare, stream);
  } else if (pass.row_count <= 16) {
    Launch<2, kWidth, E>(pass, arrivals, spare, stream);
  } else {
    Launch<4, kWidth, E>(pass, arrivals, spare, stream);
  }
}

}  // namespace

bool CanRunWindowPass(const Cache& cache, int heads, int inner, int layers) {
  if (!CanAttendGroups(cache, heads) || !CanLaunchOnAll() || cache.layer_stride % 8 != 0) return false;
  const int k = std::max(Padded(cache.d), Padded(inner));
  return MemoryFor<1, 64>(k, layers).Holds(k) && MemoryFor<4, 64>(k, layers).Holds(k);
}

void RunWindowPass(const WindowPass& pass, Arrivals* arrivals, int spare, cudaStream_t stream) {
  const auto launch = [&](auto number) {
    using E = decltype(number);
    if (pass.cache.d / pass.heads == 64) {
      LaunchFor<64, E>(pass, arrivals, spare, stream);
    } else {
      LaunchFor<32, E>(pass, arrivals, spare, stream);
    }
  };
  if (pass.cache.type == Type::kFloat16) {
    launch(__half());
  } else {
    launch(__nv_bfloat16());
  }
}

}  // namespace smt::cuda
