// dt_proj, softplus and the state update of many sessions' writes in one kernel. The product is small: what takes time
// is the states, which are on their way while the kernel before still runs.
#include <algorithm>

#include "model/cuda/addends.cuh"
#include "model/cuda/chain.cuh"
#include "model/cuda/epilogue.cuh"
#include "model/cuda/few_rows.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/memory.cuh"

namespace smt::cuda {
namespace {

constexpr int kStates = 16, kMaxRank = 128;
constexpr int kRows = 8, kChannels = 32;  // of a block: a tile of the tensor cores' rows, two of their channels
constexpr int kBlocks = 3;                // of a multiprocessor
constexpr int kThreads = kRows * kChannels, kChunksOfState = kStates / 4;  // of 16 bytes
static_assert(kRows * 2 * kStates == kThreads, "B and C, one word a thread");

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

struct StepShared {
  // Chunks of 16 bytes, a channel's in an order that spares bank conflicts (ChunkAt): each lane reads its channel's,
  // while to and from device memory neighbouring lanes copy neighbouring chunks. The next rows' come meanwhile.
  alignas(16) Four states[2][kRows][kChannels * kChunksOfState];
  alignas(16) float delta[kRows][kChannels];
  alignas(16) float b[kRows][kStates], c[kRows][kStates];
};
__device__ __forceinline__ int ChunkAt(int channel, int chunk) {
  return channel * kChunksOfState + (chunk ^ channel / 2 % kChunksOfState);
}
__host__ __device__ constexpr int StrideOfWeights(int rank) { return rank + 8; }  // ldmatrix without bank conflicts
__host__ __device__ constexpr int StrideOfParameters(int rank) { return rank + 4; }
size_t SharedBytes(int rank) {
  return sizeof(StepShared) + sizeof(__nv_bfloat16) * 2 * kChannels * static_cast<size_t>(StrideOfWeights(rank)) +
         sizeof(float) * kRows * static_cast<size_t>(StrideOfParameters(rank));
}

// What a lane reads of its row, ahead.
struct RowInputs {
  float x, gate, parameter;  // of its channel, the last of B or C
  float dt[kMaxRank / kWarp];

  __device__ __forceinline__ void Load(const StepCall& call, int64_t row, int64_t channel) {
    const int lane = threadIdx.x % kWarp;
    const auto parameter_at = [&](int i) {
      return call.addends.count > 0 ? SumOfOne(call.addends, row, i) : call.parameters[row * call.ld_parameters + i];
    };
    x = call.x[row * call.ld_x + channel];
    gate = call.xz[row * call.ld_xz + call.shape.d_inner + channel];
    parameter = parameter_at(call.shape.dt_rank + lane);
#pragma unroll
    for (int i = 0; i < kMaxRank / kWarp; ++i) {
      if (i * kWarp + lane < call.rank) dt[i] = parameter_at(i * kWarp + lane);
    }
  }
};

// Grid (at most ceil(rows / kRows), ceil(d_inner / kChannels)). A warp has a row, a lane a channel of it; a block takes
// several tiles of rows one after the other.
__global__ void __launch_bounds__(kThreads, kBlocks) StepKernel(Pooling p, const __grid_constant__ StepCall call) {
  extern __shared__ __align__(16) std::byte step_shared[];
  auto& shared = *reinterpret_cast<StepShared*>(step_shared);
  const int ldw = StrideOfWeights(call.rank), ld_in = StrideOfParameters(call.rank);
  auto* const weights = reinterpret_cast<__nv_bfloat16*>(step_shared + sizeof(StepShared));  // [2][kChannels][ldw]
  auto* const in = reinterpret_cast<float*>(weights + 2 * kChannels * ldw);                  // [kRows][ld_in]
  const int channel0 = blockIdx.y * kChannels, tile_rows = static_cast<int>(gridDim.x) * kRows;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int channels = min(kChannels, call.shape.d_inner - channel0);
  const int64_t channel = channel0 + min(lane, channels - 1);
  const auto row_at = [&](int row0) { return static_cast<int64_t>(min(row0 + warp, p.count - 1)); };
  const auto states_of = [&](int row0) {
    return ScanChannel::State(p, call.shape, call.layer, p.writes[row_at(row0)].slot, channel0);
  };
  const auto load_states = [&](const float* states, int half) {
#pragma unroll
    for (int i = 0; i < kChunksOfState; ++i) {
      const int at = i * kWarp + lane, of = at / kChunksOfState;
      if (of < channels) CopyAsync(&shared.states[half][warp][ChunkAt(of, at % kChunksOfState)], states + 4 * at);
    }
    asm volatile("cp.async.commit_group;");
  };

  // What no kernel of this layer writes: weights, and the states, which are this kernel's alone.
  int row0 = static_cast<int>(blockIdx.x) * kRows, half = 0;
  const int chunks = call.rank / 8;  // of 16 bytes
  for (int at = threadIdx.x; at < 2 * kChannels * chunks; at += kThreads) {
    const int output = at / chunks, c = at % chunks * 8;  // of both planes
    CopyAsync(weights + output * ldw + c, call.dt_weight + output / kChannels * call.dt_plane +
                                              static_cast<int64_t>(channel0 + output % kChannels) * call.dt_k + c);
  }
  float* states = states_of(row0);
  load_states(states, half);
  Four rates[kChunksOfState];
#pragma unroll
  for (int q = 0; q < kChunksOfState; ++q) rates[q] = LoadFour(call.a + channel * kStates, 4 * q, kStates);
  const float skip = call.skip[channel], dt_bias = call.dt_bias[channel];

  AwaitPrevious();
  LetNextBegin();
  RowInputs inputs;
  inputs.Load(call, row_at(row0), channel);
#pragma unroll 1
  for (; row0 < p.count; row0 += tile_rows, half ^= 1) {
    const bool more = row0 + tile_rows < p.count;
    const float x = inputs.x, gate = inputs.gate;
    (lane < kStates ? shared.b[warp][lane] : shared.c[warp][lane - kStates]) = inputs.parameter;
#pragma unroll
    for (int i = 0; i < kMaxRank / kWarp; ++i) {
      if (i * kWarp + lane < call.rank) in[warp * ld_in + i * kWarp + lane] = inputs.dt[i];
    }
    float* next_states = nullptr;
    if (more) {
      next_states = states_of(row0 + tile_rows);
      load_states(next_states, half ^ 1);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
    }
    __syncthreads();
    if (more) inputs.Load(call, row_at(row0 + tile_rows), channel);

    // The sums of kernels.h; the pieces past the rank are of zeros.
    if (warp < kChannels / 16) {
      const int g = lane / 4, t = lane % 4, piece = call.dt_k / kChunks;
      const __nv_bfloat16* w = weights + (warp * 16 + lane % 16) * ldw + lane / 16 * 8;
      const float* from = in + g * ld_in + 2 * t;
      float total[4] = {};
      for (int first = 0; first < call.rank; first += piece) {
        float sum[1][4] = {};
        for (int i = first; i < min(first + piece, call.rank); i += 16) {
          uint32_t high[4], low[4], x_high[1][2], x_low[1][2];
          LoadMatrices(high, w + i);
          LoadMatrices(low, w + kChannels * ldw + i);
          SplitPair(*reinterpret_cast<const float2*>(from + i), x_high[0][0], x_low[0][0]);
          SplitPair(*reinterpret_cast<const float2*>(from + i + 8), x_high[0][1], x_low[0][1]);
          MultiplyAddSplit<1>(sum, high, low, x_high, x_low);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) total[e] += sum[0][e];
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) shared.delta[2 * t + (e & 1)][warp * 16 + g + e / 2 * 8] = total[e];
    }
    __syncthreads();

    const float delta = Activate(Activation::kSoftplus, shared.delta[warp][lane] + dt_bias);
    const float input = ScanInput(delta, x);
    float sum = 0;
#pragma unroll
    for (int q = 0; q < kChunksOfState; ++q) {
      const Four b = *reinterpret_cast<const Four*>(&shared.b[warp][4 * q]);
      const Four c = *reinterpret_cast<const Four*>(&shared.c[warp][4 * q]);
      Four h = shared.states[half][warp][ChunkAt(lane, q)];
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        h.at[u] = NextState(h.at[u], delta, rates[q].at[u], input, b.at[u]);
        sum = AddState(sum, h.at[u], c.at[u]);
      }
      shared.states[half][warp][ChunkAt(lane, q)] = h;
    }
    if (row0 + warp < p.count) {
      if (lane < channels) {
        const int64_t at = static_cast<int64_t>(row0 + warp) * call.ld + channel;
        SplitOne(GatedOutput(sum, skip, x, gate), call.y.high[at], call.y.high[call.y.plane + at]);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kChunksOfState; ++i) {
        const int at = i * kWarp + lane, of = at / kChunksOfState;
        if (of < channels) StoreFour(states + 4 * at, shared.states[half][warp][ChunkAt(of, at % kChunksOfState)]);
      }
    }
    __syncwarp();  // what the next but one copies lies where this was read
    states = next_states;
  }
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
  const int row_tiles = (writes.count + kRows - 1) / kRows;
  const int at_once = std::max(kBlocks * Multiprocessors() / of_channels, 1);
  const dim3 grid(static_cast<unsigned>(std::min(row_tiles, at_once)), static_cast<unsigned>(of_channels));
  static const cudaError_t raised = cudaFuncSetAttribute(StepKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                         static_cast<int>(SharedBytes(kMaxRank)));
  CheckCuda(raised, "raising the shared memory of Mamba's step");
  LaunchChained(StepKernel, grid, kThreads, SharedBytes(call.rank), stream, "launching Mamba's step", writes, call);
}

}  // namespace smt::cuda
