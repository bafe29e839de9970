// Up to 32 writes through pooling and Mamba as one kernel (kernels.h, WritePassCall).
#include <algorithm>

#include "model/cuda/epilogue.cuh"
#include "model/cuda/grid.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/memory.cuh"
#include "model/cuda/write_pass.cuh"

namespace smt::cuda {
namespace {

template <int kTiles, typename Embedding>
__global__ void __launch_bounds__(kFewRowsThreads, 1)
    WritePassKernel(const __grid_constant__ WritePassCall pass, uint32_t* arrived, uint32_t base) {
  using Memory = BlockMemory<kTiles, float>;
  extern __shared__ __align__(16) std::byte shared[];
  auto& pieces = *reinterpret_cast<PieceSums<kTiles>*>(shared);
  std::byte* const work = shared + Memory::kPieces;
  std::byte* const ring_memory = work + pass.work_bytes;
  auto* const full = reinterpret_cast<uint64_t*>(ring_memory + pass.ring_bytes);
  std::byte* kept = ring_memory + pass.ring_bytes + Memory::kBarriers;
  const MambaWeights* const layers = Keep(pass.layers, pass.layer_count, kept);
  Pooling p = pass.pooling;
  p.writes = Keep(p.writes, p.count, kept);
  // Of pooling, then of the layers.
  Linear* const pooling_products = reinterpret_cast<Linear*>(kept);
  if (threadIdx.x == 0) {
    pooling_products[0] = pass.query;
    pooling_products[1] = pass.key_transposed;
  }
  __syncthreads();
  const auto tasks_at = [&](int index) -> GridTasks {
    const int block = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
    if (index < 2) return {pooling_products + index, block, step};
    index -= 2;
    return {index < 4 * pass.layer_count ? &layers[index / 4].in_proj + index % 4 : nullptr, block, step};
  };
  WeightRing<decltype(tasks_at)> ring(ring_memory, static_cast<uint32_t>(pass.ring_bytes), full, tasks_at);
  GridBarrier grid(arrived, base);
  if (threadIdx.x >= kWarp) ring.Issue();
  const auto wait = [&] { grid.Wait([&] { ring.Issue(); }); };
  const MambaShape& shape = pass.shape;
  const int warp = threadIdx.x / kWarp, d = p.d, count = p.count;
  const int grid_warp = warp * gridDim.x + blockIdx.x, grid_warps = kChunks * gridDim.x;

  // What a layer keeps of 16 channels, on its way into the cache.
  const auto prefetch_state = [&](int layer, int64_t section, int of_channel) {
    if (of_channel % 4 != 0 || static_cast<int>(threadIdx.x) >= count) return;
    const float* state = Section(p.slots, p.writes[threadIdx.x].slot, section);
    for (int j0 = blockIdx.x * 16; j0 < shape.d_inner; j0 += gridDim.x * 16) {
      PrefetchL2(state + (static_cast<int64_t>(layer) * shape.d_inner + j0) * of_channel,
                 static_cast<uint32_t>(min(16, shape.d_inner - j0) * of_channel * 4));
    }
  };

  MeansOfWindows<Embedding>(pass, p);
  wait();
  // All products in one loop, what comes around them written once: the kernel has to stay in the instruction cache.
  enum Part { kIn, kParameters, kScan, kOut, kQuery, kKey };
  for (int index = 0;; ++index) {
    const int layer = (index - 2) / 4;
    const bool end = index == 2 + 4 * pass.layer_count;  // but for the last norm
    const Part part = static_cast<Part>(index < 2 ? kQuery + index : (index - 2) % 4);
    if (index == 2) {
      ScoresOfWindows<Embedding>(pass, p);
      wait();
      PoolWindows<Embedding>(pass, p, reinterpret_cast<float*>(work),
                             [&](int write, int i, float sum) { pass.x[write * pass.ld + i] = sum; });
      wait();
    }
    const MambaWeights& weights = layers[layer];
    const float* in = part == kParameters ? pass.convolved
                      : part == kScan     ? pass.parameters
                      : part == kOut      ? pass.scanned
                      : part == kKey      ? pass.query_rows
                                          : pass.normed;
    int64_t ld_in = part == kParameters || part == kOut ? pass.ld_inner : part == kScan ? pass.ld_parameters : pass.ld;
    if (part == kParameters && layer + 1 < pass.layer_count && blockIdx.x == gridDim.x - 1 && threadIdx.x == kWarp) {
      PrefetchL2(layers[layer + 1].norm, d * 4 / 16 * 16);  // all blocks will ask for it at once
    }
    if (part == kParameters) prefetch_state(layer, p.slots.state_at, shape.d_state);
    if (part == kOut && layer + 1 < pass.layer_count) prefetch_state(layer + 1, p.slots.conv_at, shape.d_conv);
    if (kTiles == 1 && part != kIn) {
      auto* const staged = reinterpret_cast<float*>(work);
      const int k = static_cast<int>(ld_in);
      StageRows(in, ld_in, count, k, staged, k + Memory::kRowPad);
      ld_in = k + Memory::kRowPad;
      in = staged;
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      __syncthreads();
    }
    if (part == kIn) {
      // All rows for every block, or each row for one.
      const bool own = kTiles == 1 && !end;
      const int k_pad = static_cast<int>(pass.ld);
      auto* const own_rows = reinterpret_cast<float*>(work);
      if (own) {
        ld_in = pass.ld + Memory::kRowPad;
        for (int at = threadIdx.x; at < count * (k_pad - d); at += kFewRowsThreads) {
          own_rows[at / (k_pad - d) * ld_in + d + at % (k_pad - d)] = 0.0f;
        }
      }
      for (int row = own ? warp : grid_warp; row < count; row += own ? kChunks : grid_warps) {
        NormalizeRow(pass.x + row * pass.ld, d, end ? pass.norm_f : weights.norm, static_cast<const float*>(nullptr),
                     pass.epsilon, own ? own_rows + row * ld_in : pass.normed + row * pass.ld);
      }
      if (own) {
        in = own_rows;
        __syncthreads();
      } else {
        wait();
      }
      if (end) break;
    }
    float* const to = part == kParameters ? pass.parameters
                      : part == kOut      ? pass.x
                      : part == kQuery    ? pass.query_rows
                                          : pass.key_rows;
    const int64_t ld_to = part == kParameters ? pass.ld_parameters : pass.ld;
    const GridTasks tasks = tasks_at(index);
    // What a sum meets, loaded ahead of it where registers allow.
    constexpr bool kAhead = kTiles <= 2;
    struct Held {
      ConvChannel conv;
      ScanChannel scan;
      float added;  // bias or residual
    };
    const auto load = [&](int row, int j, Held& held) {
      const int32_t slot = p.writes[row].slot;
      if (part == kIn) {
        if (j < shape.d_inner) {
          held.conv.Load(p, shape, layer, slot, j, weights.conv_weight, weights.conv_bias);
        }
      } else if (part == kScan) {
        held.added = tasks.linear->bias[j];
        held.scan.Load(p, shape, layer, slot, j, weights.a, weights.skip, pass.parameters + row * pass.ld_parameters,
                       pass.convolved[row * pass.ld_inner + j], pass.xz[row * pass.ld_xz + shape.d_inner + j]);
      } else if (part == kOut) {
        held.added = pass.x[row * pass.ld + j];
      }
    };
    GridProduct<kTiles>(
        ring, tasks, in, ld_in, count, pieces,
        [&](int row, int j) {
          Held held;
          if (kAhead) load(row, j, held);
          return held;
        },
        [&](int row, int j, float sum, Held& held) {
          if (!kAhead) load(row, j, held);
          const int32_t slot = p.writes[row].slot;
          if (part == kIn) {
            if (j < shape.d_inner) {
              pass.convolved[row * pass.ld_inner + j] =
                  held.conv.Run(p, shape, layer, slot, j, weights.conv_weight, sum);
            } else {
              pass.xz[row * pass.ld_xz + j] = sum;
            }
          } else if (part == kScan) {
            const float delta = Activate(Activation::kSoftplus, sum + held.added);
            pass.scanned[row * pass.ld_inner + j] =
                held.scan.Run(p, shape, layer, slot, j, weights.a, pass.parameters + row * pass.ld_parameters, delta);
          } else {
            to[row * ld_to + j] = part == kOut ? sum + held.added : sum;
          }
        });
    wait();
  }
  ForChannels(p, [&](int write, int i) {
    if (i >= d) return;
    const Write& own = p.writes[write];
    PushChannel(p, own.slot, own.memory_valid, 1, i, [&](int) { return pass.normed[write * pass.ld + i]; });
  });
}

template <int kTiles>
BlockMemory<kTiles, float> MemoryFor(const WritePassCall& pass) {
  return {std::max({pass.ld, pass.ld_inner, pass.ld_parameters}),
          static_cast<size_t>(pass.pooling.n + pass.pooling.m) * sizeof(float),
          KeptBytes<MambaWeights>(pass.layer_count) + KeptBytes<Write>(kMaxWritePassWrites) + KeptBytes<Linear>(2)};
}

template <int kTiles>
void Launch(WritePassCall pass, Arrivals* arrivals, int blocks, cudaStream_t stream) {
  const auto memory = MemoryFor<kTiles>(pass);
  pass.work_bytes = memory.work;
  pass.ring_bytes = memory.ring;
  LaunchOnAll(pass.pooling.embedding_type == Type::kBfloat16 ? WritePassKernel<kTiles, __nv_bfloat16>
                                                             : WritePassKernel<kTiles, float>,
              memory.bytes(), arrivals, 6 + pass.layer_count * (kTiles == 1 ? 4 : 5), OrAllMultiprocessors(blocks),
              stream, pass);
}

}  // namespace

bool CanRunWritePass(const WritePassCall& pass) {
  const int64_t k = std::max({pass.ld, pass.ld_inner, pass.ld_parameters});
  return CanLaunchOnAll() && MemoryFor<1>(pass).Holds(k) && MemoryFor<4>(pass).Holds(k);
}

void RunWritePass(const WritePassCall& pass, Arrivals* arrivals, int blocks, cudaStream_t stream) {
  if (pass.pooling.count <= 8) {
    Launch<1>(pass, arrivals, blocks, stream);
  } else if (pass.pooling.count <= 16) {
    Launch<2>(pass, arrivals, blocks, stream);
  } else {
    Launch<4>(pass, arrivals, blocks, stream);
  }
}

}  // namespace smt::cuda
