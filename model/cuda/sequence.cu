// Many writes of each session at once (sequence.h); what they do is in memory.cuh.
//
// Only h = decay h + input has to go from row to row. With 16 states a channel, a thread has one state of one channel:
// it makes the decays of 16 rows, which wait for nothing, and then 16 states, one fused multiply-add after the other.
// Through shared memory the same threads become rows: each sums a row's products with C in the order of the states, and
// gates them. What the next rows need is on its way into shared memory meanwhile.
#include "model/cuda/sequence.h"

#include "model/cuda/kernels.h"
#include "model/cuda/memory.cuh"

namespace smt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kConvRows = 8;  // of a thread

// Grid (ceil(rows / kConvRows), channels).
__global__ void SequenceConvKernel(Pooling p, MambaShape shape, int layer, const float* __restrict__ xz, int64_t ld_xz,
                                   const float* __restrict__ weight, const float* __restrict__ bias,
                                   float* __restrict__ y, int64_t ld, SplitRows split) {
  const int channel = blockIdx.y * blockDim.x + threadIdx.x, row0 = blockIdx.x * kConvRows;
  if (channel >= shape.d_inner) return;
  const float own_bias = bias[channel];
  const auto store = [&](int row, float value) {
    const int64_t at = row * ld + channel;
    y[at] = value;
    if (split.high != nullptr) SplitOne(value, split.high[at], split.high[split.plane + at]);
  };
  // The input `lag` rows before `row`, where that is before the session's first row.
  const auto kept = [&](const Write& write, int lag) {
    return ConvChannel::State(p, shape, layer, write.slot, channel)[shape.d_conv + write.before - lag];
  };
  if (shape.d_conv == 4) {
    const Four taps = *reinterpret_cast<const Four*>(weight + 4 * static_cast<int64_t>(channel));
    float inputs[kConvRows + 3];
#pragma unroll
    for (int i = 0; i < kConvRows + 3; ++i) {
      const int64_t row = min(max(row0 + i - 3, 0), p.count - 1);  // a place that is there
      inputs[i] = xz[row * ld_xz + channel];
    }
#pragma unroll
    for (int i = 0; i < kConvRows; ++i) {
      if (row0 + i >= p.count) break;
      const Write& write = p.writes[row0 + i];
      Four now;
#pragma unroll
      for (int u = 0; u < 4; ++u) now.at[u] = 3 - u <= write.before ? inputs[i + u] : kept(write, 3 - u);
      store(row0 + i, Convolve(
                          4, own_bias, [&](int u) { return taps.at[u]; }, [&](int u) { return now.at[u]; }));
    }
    return;
  }
  const float* own_taps = weight + static_cast<int64_t>(channel) * shape.d_conv;
  for (int row = row0; row < min(row0 + kConvRows, p.count); ++row) {
    const Write& write = p.writes[row];
    store(row, Convolve(
                   shape.d_conv, own_bias, [&](int i) { return own_taps[i]; },
                   [&](int i) {
                     const int lag = shape.d_conv - 1 - i;
                     return lag <= write.before ? xz[static_cast<int64_t>(row - lag) * ld_xz + channel]
                                                : kept(write, lag);
                   }));
  }
}

// The last inputs of a channel's convolution, after the sequence. In place: they move towards the front.
__device__ __forceinline__ void AdvanceConv(const Pooling& p, const MambaShape& shape, int layer,
                                            const Sequence& sequence, int channel, const float* xz, int64_t ld_xz) {
  float* state = ConvChannel::State(p, shape, layer, sequence.slot, channel);
  for (int i = 0; i < shape.d_conv; ++i) {
    const int row = sequence.rows - shape.d_conv + i;
    state[i] =
        row < 0 ? state[shape.d_conv + row] : xz[static_cast<int64_t>(sequence.first_row + row) * ld_xz + channel];
  }
}

// What the launcher is given.
struct ScanCall {
  MambaShape shape;
  int layer;
  const float* x;
  int64_t ld_x;
  const float* dt;
  int64_t ld_dt;
  const float* parameters;
  int64_t ld_parameters;
  const float *a, *skip, *xz;
  int64_t ld_xz;
  float* y;
  int64_t ld;
  SplitRows split;
};

// Any number of states, which stay in device memory. Grid (sequences, channels).
__global__ void SequenceScanKernel(Pooling p, ScanCall call) {
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= call.shape.d_inner) return;
  const Sequence sequence = p.sequences[blockIdx.x];
  AdvanceConv(p, call.shape, call.layer, sequence, channel, call.xz, call.ld_xz);
  for (int64_t row = sequence.first_row; row < sequence.first_row + sequence.rows; ++row) {
    const float* parameters = call.parameters + row * call.ld_parameters;
    ScanChannel scan;
    scan.Load(p, call.shape, call.layer, sequence.slot, channel, call.a, call.skip, parameters,
              call.x[row * call.ld_x + channel], call.xz[row * call.ld_xz + call.shape.d_inner + channel]);
    const float value = scan.Run(p, call.shape, call.layer, sequence.slot, channel, call.a, parameters,
                                 call.dt[row * call.ld_dt + channel]);
    StoreOutput(value, row * call.ld + channel, call.y, call.split);
  }
}

constexpr int kStates = 16, kTileRows = 16, kTileChannels = 8, kTiles = 4;
constexpr int kScanThreads = kTileChannels * kStates;  // or kTileChannels * kTileRows
static_assert(kTileRows == kStates);

// What kTileRows rows bring, in shared memory. The strides keep a warp's words in different banks: those that it stores
// (4 rows of 8 channels) and those that it loads (C's of 16 rows).
struct ScanTile {
  float delta[kTileChannels][kTileRows + 4], x[kTileChannels][kTileRows + 4], gate[kTileChannels][kTileRows + 4];
  float b[kTileRows][kStates], c[kTileRows][kStates + 1];
};

__device__ __forceinline__ void CopyWord(float* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

// Begins copying the sequence's rows from `row` on, the last one where they end; by the block.
__device__ __forceinline__ void LoadTile(const ScanCall& call, const Sequence& sequence, int channel0, int row,
                                         ScanTile& tile) {
  const int end = sequence.rows - 1;
  const auto row_at = [&](int r) { return static_cast<int64_t>(sequence.first_row + min(row + r, end)); };
  const int r = threadIdx.x / kTileChannels, c = threadIdx.x % kTileChannels;
  const int channel = min(channel0 + c, call.shape.d_inner - 1);
  CopyWord(&tile.delta[c][r], call.dt + row_at(r) * call.ld_dt + channel);
  CopyWord(&tile.x[c][r], call.x + row_at(r) * call.ld_x + channel);
  CopyWord(&tile.gate[c][r], call.xz + row_at(r) * call.ld_xz + call.shape.d_inner + channel);
#pragma unroll
  for (int j = 0; j < kTileRows * 2 * kStates / kScanThreads; ++j) {
    const int at = threadIdx.x + j * kScanThreads;
    const int of = at / (2 * kStates), i = at % (2 * kStates);
    CopyWord(i < kStates ? &tile.b[of][i] : &tile.c[of][i - kStates],
             call.parameters + row_at(of) * call.ld_parameters + call.shape.dt_rank + i);
  }
}

// kStates states. Grid (sequences, ceil(d_inner / kTileChannels)).
__global__ void __launch_bounds__(kScanThreads) SequenceScan16Kernel(Pooling p, const __grid_constant__ ScanCall call) {
  __shared__ __align__(16) ScanTile tiles[kTiles];
  __shared__ float states[kTileChannels][kTileRows][kStates + 1];
  const Sequence sequence = p.sequences[blockIdx.x];
  const int channel0 = blockIdx.y * kTileChannels;
  const int c = threadIdx.x / kStates, lane = threadIdx.x % kStates;  // a state, then a row
  const bool own = channel0 + c < call.shape.d_inner;
  const int channel = min(channel0 + c, call.shape.d_inner - 1);
  const auto load = [&](int row) {
    if (row < sequence.rows) LoadTile(call, sequence, channel0, row, tiles[row / kTileRows % kTiles]);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int i = 0; i < kTiles - 1; ++i) load(i * kTileRows);
  if (own && lane == 0) AdvanceConv(p, call.shape, call.layer, sequence, channel, call.xz, call.ld_xz);
  float* state = ScanChannel::State(p, call.shape, call.layer, sequence.slot, channel) + lane;
  const float rate = call.a[static_cast<int64_t>(channel) * kStates + lane], skip = call.skip[channel];
  float h = *state;
  for (int row = 0; row < sequence.rows; row += kTileRows) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kTiles - 2) : "memory");
    __syncthreads();
    load(row + (kTiles - 1) * kTileRows);  // where the tile before this one was
    const ScanTile& tile = tiles[row / kTileRows % kTiles];
    const int rows = sequence.rows - row;
#pragma unroll
    for (int q = 0; q < kTileRows; q += 4) {
      const Four delta = *reinterpret_cast<const Four*>(&tile.delta[c][q]);
      const Four x = *reinterpret_cast<const Four*>(&tile.x[c][q]);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const float next = NextState(h, delta.at[u], rate, ScanInput(delta.at[u], x.at[u]), tile.b[q + u][lane]);
        h = q + u < rows ? next : h;
        states[c][q + u][lane] = h;
      }
    }
    __syncwarp();  // a channel is one warp's
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kStates; ++i) sum = AddState(sum, states[c][lane][i], tile.c[lane][i]);
    if (own && lane < rows) {
      StoreOutput(GatedOutput(sum, skip, tile.x[c][lane], tile.gate[c][lane]),
                  static_cast<int64_t>(sequence.first_row + row + lane) * call.ld + channel, call.y, call.split);
    }
  }
  if (own) *state = h;
}

// Grid (sequences, channels).
__global__ void SequenceSimpleKernel(Pooling p, int layer, const float* __restrict__ decay,
                                     const float* __restrict__ skip, float* __restrict__ x, int64_t ld_x,
                                     const float* __restrict__ u, int64_t ld_u, float* __restrict__ hidden,
                                     int64_t ld_hidden) {
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= p.d) return;
  const Sequence sequence = p.sequences[blockIdx.x];
  float* state = Section(p.slots, sequence.slot, p.slots.state_at) + static_cast<int64_t>(layer) * p.d + channel;
  const float own_decay = decay[channel], own_skip = skip[channel];
  float h = *state;
  constexpr int kAhead = 16;
  for (int from = 0; from < sequence.rows; from += kAhead) {
    float inputs[kAhead], values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t row = sequence.first_row + min(from + i, sequence.rows - 1);
      inputs[i] = u[row * ld_u + channel];
      values[i] = x[row * ld_x + channel];
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (from + i >= sequence.rows) break;
      const int64_t row = sequence.first_row + from + i;
      h = NextSimpleState(h, own_decay, inputs[i]);
      hidden[row * ld_hidden + channel] = h;
      x[row * ld_x + channel] = SkipSimple(values[i], own_skip);
    }
  }
  *state = h;
}

__global__ void PushSequencesKernel(Pooling p, const float* __restrict__ output, int64_t ld) {
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= p.d) return;
  const Sequence sequence = p.sequences[blockIdx.x];
  PushChannel(p, sequence.slot, sequence.memory_valid, sequence.rows, channel,
              [&](int i) { return output[(sequence.first_row + i) * ld + channel]; });
}

dim3 Grid(int count, int channels, int threads = kThreads) {
  return {static_cast<unsigned>(count), static_cast<unsigned>((channels + threads - 1) / threads)};
}

}  // namespace

void SequenceConv(const Pooling& writes, const MambaShape& shape, int layer, const float* xz, int64_t ld_xz,
                  const float* weight, const float* bias, float* y, int64_t ld, const SplitRows& split,
                  cudaStream_t stream) {
  SequenceConvKernel<<<Grid((writes.count + kConvRows - 1) / kConvRows, shape.d_inner), kThreads, 0, stream>>>(
      writes, shape, layer, xz, ld_xz, weight, bias, y, ld, split);
  CheckCuda(cudaGetLastError(), "launching Mamba's convolution of sequences");
}

void SequenceScan(const Pooling& writes, const MambaShape& shape, int layer, const float* x, int64_t ld_x,
                  const float* dt, int64_t ld_dt, const float* parameters, int64_t ld_parameters, const float* a,
                  const float* skip, const float* xz, int64_t ld_xz, float* y, int64_t ld, const SplitRows& split,
                  cudaStream_t stream) {
  const ScanCall call = {shape, layer, x, ld_x, dt, ld_dt, parameters, ld_parameters, a, skip, xz, ld_xz, y, ld, split};
  if (shape.d_state == kStates) {
    SequenceScan16Kernel<<<Grid(writes.sequence_count, shape.d_inner, kTileChannels), kScanThreads, 0, stream>>>(writes,
                                                                                                                 call);
  } else {
    SequenceScanKernel<<<Grid(writes.sequence_count, shape.d_inner), kThreads, 0, stream>>>(writes, call);
  }
  CheckCuda(cudaGetLastError(), "launching Mamba's scan of sequences");
}

void SequenceSimpleSsm(const Pooling& writes, int layer, const float* decay, const float* skip, float* x, int64_t ld_x,
                       const float* u, int64_t ld_u, float* hidden, int64_t ld_hidden, cudaStream_t stream) {
  SequenceSimpleKernel<<<Grid(writes.sequence_count, writes.d), kThreads, 0, stream>>>(
      writes, layer, decay, skip, x, ld_x, u, ld_u, hidden, ld_hidden);
  CheckCuda(cudaGetLastError(), "launching the simple SSM's scan of sequences");
}

void PushSequences(const Pooling& writes, const float* output, int64_t ld, cudaStream_t stream) {
  PushSequencesKernel<<<Grid(writes.sequence_count, writes.d), kThreads, 0, stream>>>(writes, output, ld);
  CheckCuda(cudaGetLastError(), "launching the push of sequences onto memory");
}

}  // namespace smt::cuda
