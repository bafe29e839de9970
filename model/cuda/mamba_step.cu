// dt_proj, softplus and the state update of many sessions' writes in one kernel. The product is small: what takes time
// is the states, of which the first are on their way while the kernel before still runs.
#include <algorithm>

#include "model/cuda/addends.cuh"
#include "model/cuda/chain.cuh"
#include "model/cuda/epilogue.cuh"
#include "model/cuda/few_rows.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/memory.cuh"

namespace smt::cuda {
namespace {

constexpr int kStates = 16, kMaxRank = 128, kChunksOfState = kStates / 4;  // of 16 bytes
constexpr int kRowsOfTile = 8, kMaxTiles = 4, kChannels = kWarp;  // of a block; tiles of the tensor cores' rows
constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kBlocks = 3;                 // of a multiprocessor
constexpr int kMaxStages = 6, kAhead = 3;  // rows of a warp with room for their states; those asked for at first

struct StepCall {
  MambaShape shape;
  int layer;
  const __nv_bfloat16* dt_weight;  // two planes
  int64_t dt_plane;
  const float* dt_bias;
  int dt_k, rank;  // inner dimension; how much of it is not zero, to a multiple of 16
  const float* x;
  int64_t ld_x;
  const float* parameters;
  int64_t ld_parameters;
  Addends addends;  // of parameters
  const float *a, *skip, *xz;
  int64_t ld_xz;
  SplitRows y;
  int64_t ld;
};

template <int kTiles>
struct StepShared {
  static constexpr int kRows = kRowsOfTile * kTiles;
  static constexpr int kOwn = kRows / kWarps;  // rows of a warp
  static constexpr int kStages = kOwn < kMaxStages ? kOwn : kMaxStages;
  // Chunks of 16 bytes, a channel's in an order that spares bank conflicts (ChunkAt): each lane reads its channel's,
  // while to and from device memory neighbouring lanes copy neighbouring chunks.
  alignas(16) Four states[kWarps][kStages][kChannels * kChunksOfState];
  alignas(16) float b_and_c[kRows][2 * kStates];
  float x[kRows][kChannels], gate[kRows][kChannels];
};
__device__ __forceinline__ int ChunkAt(int channel, int chunk) {
  return channel * kChunksOfState + (chunk ^ channel / 2 % kChunksOfState);
}
__host__ __device__ constexpr int StrideOfWeights(int rank) { return rank + 8; }  // ldmatrix without bank conflicts
// A row's share of what dt_proj multiplies, then its outputs in the same place.
__host__ __device__ constexpr int StrideOfSteps(int rank) { return (rank < kChannels ? kChannels : rank) + 4; }
template <int kTiles>
constexpr size_t SharedBytes(int rank) {
  return sizeof(StepShared<kTiles>) +
         sizeof(__nv_bfloat16) * 2 * kChannels * static_cast<size_t>(StrideOfWeights(rank)) +
         sizeof(float) * StepShared<kTiles>::kRows * static_cast<size_t>(StrideOfSteps(rank));
}

// Until all but the last kPending groups of copies are there.
template <int kPending>
__device__ __forceinline__ void AwaitCopyGroups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Grid (blocks that share the rows, ceil(d_inner / kChannels)). A lane has a channel, a warp every kWarps-th of the
// block's rows, kTiles tiles at a time. Rows are asked for a few at a time: with all of a block's on their way, what
// the product waits for comes after them. Spilled registers would cost more than anything else, since shared memory
// leaves the cache they go to no room; hence few warps with many registers.
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 4) StepKernel(Pooling p, const __grid_constant__ StepCall call) {
  using Shared = StepShared<kTiles>;
  constexpr int kRows = Shared::kRows, kOwn = Shared::kOwn, kStages = Shared::kStages;
  constexpr int kFirst = kAhead < kStages ? kAhead : kStages;
  constexpr int kTasks = (2 * kTiles + kWarps - 1) / kWarps;  // products of 16 channels and a tile
  extern __shared__ __align__(16) std::byte step_shared[];
  auto& shared = *reinterpret_cast<Shared*>(step_shared);
  const int ldw = StrideOfWeights(call.rank), ld_steps = StrideOfSteps(call.rank);
  auto* const weights = reinterpret_cast<__nv_bfloat16*>(step_shared + sizeof(Shared));  // [2][kChannels][ldw]
  auto* const steps = reinterpret_cast<float*>(weights + 2 * kChannels * ldw);           // [kRows][ld_steps]
  const int channel0 = blockIdx.y * kChannels, block_rows = static_cast<int>(gridDim.x) * kRows;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int channels = min(kChannels, call.shape.d_inner - channel0);
  const int64_t channel = channel0 + min(lane, channels - 1);
  int row0 = static_cast<int>(blockIdx.x) * kRows;
  const auto row_at = [&](int i) { return static_cast<int64_t>(min(row0 + i * kWarps + warp, p.count - 1)); };
  int32_t slot = 0;  // lane i: of the warp's row i
  const auto find_slots = [&] {
    if (lane < kOwn) slot = p.writes[row_at(lane)].slot;
  };
  const auto states_of = [&](int i) {
    return ScanChannel::State(p, call.shape, call.layer, __shfl_sync(kAllLanes, slot, i), channel0);
  };
  // A group of copies for each row, empty from the last one on.
  const auto load_states = [&](int i) {
    if (i < kOwn) {
      const float* states = states_of(i);
#pragma unroll
      for (int q = 0; q < kChunksOfState; ++q) {
        const int at = q * kWarp + lane, of = at / kChunksOfState;
        if (of < channels) {
          CopyAsync(&shared.states[warp][i % kStages][ChunkAt(of, at % kChunksOfState)], states + 4 * at);
        }
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  // What no kernel of this layer writes: weights, and the states, which are this kernel's alone.
  find_slots();
  const int chunks = call.rank / 8;  // of 16 bytes
  for (int at = threadIdx.x; at < 2 * kChannels * chunks; at += kThreads) {
    const int output = at / chunks, c = at % chunks * 8;  // of both planes
    CopyAsync(weights + output * ldw + c, call.dt_weight + output / kChannels * call.dt_plane +
                                              static_cast<int64_t>(channel0 + output % kChannels) * call.dt_k + c);
  }
  asm volatile("cp.async.commit_group;");
  Four rates[kChunksOfState];
#pragma unroll
  for (int q = 0; q < kChunksOfState; ++q) rates[q] = LoadFour(call.a + channel * kStates, 4 * q, kStates);
  const float skip = call.skip[channel], dt_bias = call.dt_bias[channel];
#pragma unroll
  for (int i = 0; i < kFirst; ++i) load_states(i);

  AwaitPrevious();
  LetNextBegin();
  bool first = true;
#pragma unroll 1
  for (; row0 < p.count; row0 += block_rows, first = false) {
    if (!first) {
      __syncthreads();  // all is read that the next rows take the place of
      find_slots();
#pragma unroll
      for (int i = 0; i < kFirst; ++i) load_states(i);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      shared.x[i * kWarps + warp][lane] = call.x[row_at(i) * call.ld_x + channel];
      shared.gate[i * kWarps + warp][lane] = call.xz[row_at(i) * call.ld_xz + call.shape.d_inner + channel];
    }
    const auto put = [&](int i, int column, const Four& parameters) {
      const int row = i * kWarps + warp;
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const int at = column + u, of = at - call.shape.dt_rank;
        if (at < call.rank) steps[row * ld_steps + at] = parameters.at[u];
        if (of >= 0 && of < 2 * kStates) shared.b_and_c[row][of] = parameters.at[u];
      }
    };
    for (int column = 4 * lane; column < call.shape.dt_rank + 2 * kStates; column += 4 * kWarp) {
      if (call.addends.count > 0) {
#pragma unroll(kTiles == 1 ? kOwn : 1)
        for (int i = 0; i < kOwn; ++i) put(i, column, SumOfFour(call.addends, row_at(i), column));
      } else {
        Four parameters[kOwn];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          parameters[i] = *reinterpret_cast<const Four*>(call.parameters + row_at(i) * call.ld_parameters + column);
        }
#pragma unroll
        for (int i = 0; i < kOwn; ++i) put(i, column, parameters[i]);
      }
    }
    if (first) AwaitCopyGroups<kFirst>();  // the weights
    __syncthreads();

#pragma unroll
    for (int i = kFirst; i < kStages; ++i) load_states(i);

    // The sums of kernels.h; the pieces past the rank are of zeros.
    if (warp < 2 * kTiles) {
      const int g = lane / 4, t = lane % 4, half = warp % 2, piece = call.dt_k / kChunks;
      const __nv_bfloat16* w = weights + (half * 16 + lane % 16) * ldw + lane / 16 * 8;
      const auto tile_of = [&](int task) { return (warp + task * kWarps) / 2; };
      float total[kTasks][4] = {};
#pragma unroll 1
      for (int from = 0; from < call.rank; from += piece) {
        float sum[kTasks][1][4] = {};
        for (int i = from; i < min(from + piece, call.rank); i += 16) {
          uint32_t high[4], low[4], x_high[1][2], x_low[1][2];
          LoadMatrices(high, w + i);
          LoadMatrices(low, w + kChannels * ldw + i);
#pragma unroll
          for (int task = 0; task < kTasks; ++task) {
            if (tile_of(task) >= kTiles) break;
            const float* x = steps + (tile_of(task) * kRowsOfTile + g) * ld_steps + 2 * t + i;
            SplitPair(*reinterpret_cast<const float2*>(x), x_high[0][0], x_low[0][0]);
            SplitPair(*reinterpret_cast<const float2*>(x + 8), x_high[0][1], x_low[0][1]);
            MultiplyAddSplit<1>(sum[task], high, low, x_high, x_low);
          }
        }
#pragma unroll
        for (int task = 0; task < kTasks; ++task) {
#pragma unroll
          for (int e = 0; e < 4; ++e) total[task][e] += sum[task][0][e];
        }
      }
      // The two warps of a tile have read what the sums take the place of.
      asm volatile("bar.sync %0, %1;" ::"r"(1 + warp / 2), "n"(2 * kWarp) : "memory");
#pragma unroll
      for (int task = 0; task < kTasks; ++task) {
        if (tile_of(task) >= kTiles) break;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = tile_of(task) * kRowsOfTile + 2 * t + (e & 1);
          steps[row * ld_steps + half * 16 + g + e / 2 * 8] = total[task][e];
        }
      }
    }
    __syncthreads();

#pragma unroll 1
    for (int i = 0; i < kOwn; ++i) {
      const int row = i * kWarps + warp;
      const float x = shared.x[row][lane];
      const float delta = Activate(Activation::kSoftplus, steps[row * ld_steps + lane] + dt_bias);
      const float input = ScanInput(delta, x);
      AwaitCopyGroups<kStages - 1>();
      __syncwarp();
      Four* const own = shared.states[warp][i % kStages];
      float sum = 0;
#pragma unroll
      for (int q = 0; q < kChunksOfState; ++q) {
        const Four b = *reinterpret_cast<const Four*>(&shared.b_and_c[row][4 * q]);
        const Four c = *reinterpret_cast<const Four*>(&shared.b_and_c[row][kStates + 4 * q]);
        Four h = own[ChunkAt(lane, q)];
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          h.at[u] = NextState(h.at[u], delta, rates[q].at[u], input, b.at[u]);
          sum = AddState(sum, h.at[u], c.at[u]);
        }
        own[ChunkAt(lane, q)] = h;
      }
      __syncwarp();
      float* const states = states_of(i);
      if (row0 + row < p.count) {
#pragma unroll
        for (int q = 0; q < kChunksOfState; ++q) {
          const int at = q * kWarp + lane, of = at / kChunksOfState;
          if (of < channels) StoreFour(states + 4 * at, own[ChunkAt(of, at % kChunksOfState)]);
        }
        if (lane < channels) {
          const int64_t at = static_cast<int64_t>(row0 + row) * call.ld + channel;
          SplitOne(GatedOutput(sum, skip, x, shared.gate[row][lane]), call.y.high[at], call.y.high[call.y.plane + at]);
        }
      }
      __syncwarp();
      load_states(i + kStages);
    }
  }
}

template <int kTiles>
void Launch(const Pooling& writes, const StepCall& call, dim3 grid, cudaStream_t stream) {
  static const cudaError_t raised = cudaFuncSetAttribute(
      StepKernel<kTiles>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(SharedBytes<kTiles>(kMaxRank)));
  CheckCuda(raised, "raising the shared memory of Mamba's step");
  LaunchChained(StepKernel<kTiles>, grid, kThreads, SharedBytes<kTiles>(call.rank), stream, "launching Mamba's step",
                writes, call);
}

}  // namespace

bool CanRunMambaStep(const Linear& dt_proj, const MambaShape& shape) {
  return dt_proj.type == Type::kSplit && shape.d_state == kStates && shape.dt_rank <= kMaxRank;
}

void MambaStep(const Pooling& writes, const MambaShape& shape, int layer, const Linear& dt_proj, const float* x,
               int64_t ld_x, const float* parameters, int64_t ld_parameters, const Addends& addends, const float* a,
               const float* skip, const float* xz, int64_t ld_xz, const SplitRows& y, int64_t ld, cudaStream_t stream) {
  const StepCall call = {.shape = shape,
                         .layer = layer,
                         .dt_weight = static_cast<const __nv_bfloat16*>(dt_proj.weight),
                         .dt_plane = dt_proj.plane,
                         .dt_bias = dt_proj.bias,
                         .dt_k = dt_proj.k,
                         .rank = (shape.dt_rank + 15) / 16 * 16,
                         .x = x,
                         .ld_x = ld_x,
                         .parameters = parameters,
                         .ld_parameters = ld_parameters,
                         .addends = addends,
                         .a = a,
                         .skip = skip,
                         .xz = xz,
                         .ld_xz = ld_xz,
                         .y = y,
                         .ld = ld};
  const int of_channels = (shape.d_inner + kChannels - 1) / kChannels;
  // Enough tiles a block that all blocks run at once, where that can be.
  const int at_once = std::max(kBlocks * Multiprocessors() / of_channels, 1);
  const int tiles = std::clamp((writes.count + kRowsOfTile * at_once - 1) / (kRowsOfTile * at_once), 1, kMaxTiles);
  const int blocks = std::min((writes.count + kRowsOfTile * tiles - 1) / (kRowsOfTile * tiles), at_once);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(of_channels));
  switch (tiles) {
    case 1:
      return Launch<1>(writes, call, grid, stream);
    case 2:
      return Launch<2>(writes, call, grid, stream);
    case 3:
      return Launch<3>(writes, call, grid, stream);
    default:
      return Launch<4>(writes, call, grid, stream);
  }
}

}  // namespace smt::cuda
