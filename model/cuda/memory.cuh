// What a write goes through besides matrix products: attention pooling in its absorbed form (the keys of the window are
// never formed: q . Wk x = (Wk^T q) . x), the Mamba-1 step (Gu, Dao: "Mamba: Linear-Time Sequence Modeling with
// Selective State Spaces", 2023), the push onto memory. All in float32. Bodies shared by the kernels of memory.cu, of
// sequence.cu and the one of write_pass.cu.
#pragma once

#include <cuda_bf16.h>

#include "model/cuda/kernels.h"
#include "model/cuda/window.cuh"

namespace smt::cuda {

__device__ __forceinline__ float Silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ float* Section(const SlotMemory& slots, int32_t slot, int64_t at) {
  return reinterpret_cast<float*>(slots.base + slot * slots.stride + at);
}

// Row `i` of a write's window, without positions: memory first, then tokens.
template <typename Embedding>
struct WindowRows {
  const float* memory;
  const Embedding* embeddings;
  const int32_t* ids;
  int64_t ld;
  int memory_rows, count, d;
  int32_t first_id, ids_mask;

  __device__ __forceinline__ WindowRows(const Pooling& p, const Write& write)
      : memory(Section(p.slots, write.slot, p.slots.memory_at)),
        embeddings(static_cast<const Embedding*>(p.embeddings)),
        ids(p.ids + write.ids_at),
        ld(p.ld_embeddings),
        memory_rows(write.memory_pooled),
        count(write.memory_pooled + write.tokens),
        d(p.d),
        first_id(write.first_id),
        ids_mask(p.ids_mask) {}
  __device__ __forceinline__ const Embedding* EmbeddingOf(int row) const {  // row: of a token
    return embeddings + ids[(first_id + row - memory_rows) & ids_mask] * ld;
  }
  // Copies the ids into `shared`, where loads ask for them at no cost. All threads from `first` on; the caller
  // synchronizes.
  __device__ __forceinline__ void StageIds(int32_t* shared, int first) {
    for (int i = static_cast<int>(threadIdx.x) - first; i >= 0 && i < count - memory_rows; i += blockDim.x - first) {
      shared[i] = ids[(first_id + i) & ids_mask];
    }
    ids = shared;
    first_id = 0;
    ids_mask = 0x7fffffff;
  }
  // Calls with(row, value) for all rows of a column in order, kAhead loads at a time: memory and tokens apart, since
  // loads on both sides of a branch would wait for each other.
  template <int kAhead, typename With>
  __device__ __forceinline__ void ForEach(int column, With with) const {
    const auto for_rows = [&](int first, int end, auto value_at) {
      for (int from = first; from < end; from += kAhead) {
        float values[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) values[i] = value_at(min(from + i, end - 1));
        __syncwarp(__activemask());  // or the compiler would use the first before it asks for the last
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (from + i < end) with(from + i, values[i]);
        }
      }
    };
    for_rows(0, memory_rows, [&](int row) { return memory[static_cast<int64_t>(row) * d + column]; });
    for_rows(memory_rows, count, [&](int row) { return ToFloat(EmbeddingOf(row)[column]); });
  }
};

inline constexpr int kRowsAhead = 13;
template <int kAhead = kRowsAhead, typename Embedding>
__device__ __forceinline__ float MeanOfRows(const WindowRows<Embedding>& rows, int column) {
  float sum = 0;
  rows.template ForEach<kAhead>(column, [&](int, float value) { sum += value; });
  return sum / static_cast<float>(rows.count);
}

// By a warp: a row's product with the key.
template <typename Embedding>
__device__ __forceinline__ float PoolScore(const WindowRows<Embedding>& rows, int row, const float* key, float scale) {
  float score = 0;
  const auto multiply = [&](const auto* values) {
#pragma unroll 12
    for (int i = threadIdx.x % kWarp; i < rows.d; i += kWarp) score = fmaf(key[i], ToFloat(values[i]), score);
  };
  if (row < rows.memory_rows) {
    multiply(rows.memory + static_cast<int64_t>(row) * rows.d);
  } else {
    multiply(rows.EmbeddingOf(row));
  }
  return __fmul_rn(WarpSum(score), scale);
}

// By a warp: weights[:window] = softmax(scores[:count]), zeros after; may be in place.
__device__ __forceinline__ void PoolSoftmax(const float* scores, int count, int window, float* weights) {
  const int lane = threadIdx.x % kWarp;
  float largest = -INFINITY, sum = 0;
  for (int row = lane; row < count; row += kWarp) largest = fmaxf(largest, scores[row]);
  largest = WarpMax(largest);
  for (int row = lane; row < count; row += kWarp) {
    weights[row] = expf(scores[row] - largest);
    sum += weights[row];
  }
  sum = WarpSum(sum);
  for (int row = lane; row < count; row += kWarp) weights[row] /= sum;
  for (int row = count + lane; row < window; row += kWarp) weights[row] = 0;
}

template <int kAhead = kRowsAhead, typename Embedding>
__device__ __forceinline__ float WeightedRows(const WindowRows<Embedding>& rows, const float* weights, int column) {
  float sum = 0;
  rows.template ForEach<kAhead>(column, [&](int row, float value) { sum = fmaf(weights[row], value, sum); });
  return sum;
}

// A channel of `count` more memory vectors, output(i) the i-th, oldest first; the session has `valid`.
template <typename Output>
__device__ __forceinline__ void PushChannel(const Pooling& p, int32_t slot, int valid, int count, int channel,
                                            Output output) {
  float* memory = Section(p.slots, slot, p.slots.memory_at) + channel;
  const int dropped = max(valid + count - p.n, 0), end = min(valid + count, p.n);
  // Every vector moves towards the front or stays, so what is loaded ahead is never behind what is stored.
  constexpr int kAhead = 16;
  for (int from = dropped > 0 ? 0 : valid; from < end; from += kAhead) {
    float values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int source = from + i + dropped;
      if (from + i >= end) continue;
      values[i] = source < valid ? memory[static_cast<int64_t>(source) * p.d] : output(source - valid);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (from + i < end) memory[static_cast<int64_t>(from + i) * p.d] = values[i];
    }
  }
}

// What a channel computes, for a step and for a sequence of them: each sum in one order, wherever its operands lie.
// Spelled out where the compiler could fuse it in one kernel and not in another.

// The causal convolution, tap(i) and input(i) oldest first, and silu after it.
template <typename Tap, typename Input>
__device__ __forceinline__ float Convolve(int taps, float bias, Tap tap, Input input) {
  float sum = bias;
#pragma unroll
  for (int i = 0; i < taps; ++i) sum = fmaf(tap(i), input(i), sum);
  return Silu(sum);
}
// Mamba's: h' = exp(delta rate) h + (delta x) b; y = (sum of h' c + skip x) silu(gate).
__device__ __forceinline__ float ScanInput(float delta, float x) { return __fmul_rn(delta, x); }
__device__ __forceinline__ float NextState(float h, float delta, float rate, float input, float b) {
  return fmaf(expf(__fmul_rn(delta, rate)), h, __fmul_rn(input, b));
}
__device__ __forceinline__ float AddState(float sum, float h, float c) { return fmaf(h, c, sum); }
__device__ __forceinline__ float GatedOutput(float sum, float skip, float x, float gate) {
  return __fmul_rn(fmaf(skip, x, sum), Silu(gate));
}
// The simple SSM's.
__device__ __forceinline__ float NextSimpleState(float h, float decay, float u) { return fmaf(decay, h, u); }
__device__ __forceinline__ float SkipSimple(float x, float skip) { return fmaf(skip, x, x); }

// Into y, or into `split` where that is there.
__device__ __forceinline__ void StoreOutput(float value, int64_t at, float* y, const SplitRows& split) {
  if (split.high == nullptr) {
    y[at] = value;
  } else {
    SplitOne(value, split.high[at], split.high[split.plane + at]);
  }
}

// A step of one channel's convolution. Load brings what it needs, ahead; only the usual width has that.
struct ConvChannel {
  Four past, taps;
  float bias;

  static __device__ __forceinline__ float* State(const Pooling& p, const MambaShape& shape, int layer, int32_t slot,
                                                 int channel) {
    return Section(p.slots, slot, p.slots.conv_at) +
           (static_cast<int64_t>(layer) * shape.d_inner + channel) * shape.d_conv;
  }
  __device__ __forceinline__ void Load(const Pooling& p, const MambaShape& shape, int layer, int32_t slot, int channel,
                                       const float* weight, const float* biases) {
    if (shape.d_conv == 4) {
      past = *reinterpret_cast<const Four*>(State(p, shape, layer, slot, channel));
      taps = *reinterpret_cast<const Four*>(weight + 4 * static_cast<int64_t>(channel));
    }
    bias = biases[channel];
  }
  __device__ __forceinline__ float Run(const Pooling& p, const MambaShape& shape, int layer, int32_t slot, int channel,
                                       const float* weight, float value) const {
    float* state = State(p, shape, layer, slot, channel);
    if (shape.d_conv == 4) {
      const Four now = {{past.at[1], past.at[2], past.at[3], value}};
      *reinterpret_cast<Four*>(state) = now;
      return Convolve(
          4, bias, [&](int i) { return taps.at[i]; }, [&](int i) { return now.at[i]; });
    }
    const float* own_taps = weight + static_cast<int64_t>(channel) * shape.d_conv;
    for (int i = 0; i + 1 < shape.d_conv; ++i) state[i] = state[i + 1];
    state[shape.d_conv - 1] = value;
    return Convolve(
        shape.d_conv, bias, [&](int i) { return own_taps[i]; }, [&](int i) { return state[i]; });
  }
};

// A step of one channel's states, and its gated output. Load brings what it needs, ahead; of the states only where
// there are 16, as usual.
struct ScanChannel {
  Four h[4], rates[4], b[4], c[4];
  float x, gate, skip;

  static __device__ __forceinline__ float* State(const Pooling& p, const MambaShape& shape, int layer, int32_t slot,
                                                 int channel) {
    return Section(p.slots, slot, p.slots.state_at) +
           (static_cast<int64_t>(layer) * shape.d_inner + channel) * shape.d_state;
  }
  // `parameters`: of the row, dt first, then B and C.
  __device__ __forceinline__ void Load(const Pooling& p, const MambaShape& shape, int layer, int32_t slot, int channel,
                                       const float* a, const float* skips, const float* parameters, float in,
                                       float gate_in) {
    x = in;
    gate = gate_in;
    skip = skips[channel];
    if (shape.d_state != 16) return;
    const float* state = State(p, shape, layer, slot, channel);
    const float* from = parameters + shape.dt_rank;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      h[q] = LoadFour(state, 4 * q, 16);
      rates[q] = LoadFour(a + static_cast<int64_t>(channel) * 16, 4 * q, 16);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        b[q].at[u] = from[4 * q + u];
        c[q].at[u] = from[16 + 4 * q + u];
      }
    }
  }
  __device__ __forceinline__ float Run(const Pooling& p, const MambaShape& shape, int layer, int32_t slot, int channel,
                                       const float* a, const float* parameters, float delta) {
    float* state = State(p, shape, layer, slot, channel);
    const float input = ScanInput(delta, x);
    float sum = 0;
    if (shape.d_state == 16) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          h[q].at[u] = NextState(h[q].at[u], delta, rates[q].at[u], input, b[q].at[u]);
          sum = AddState(sum, h[q].at[u], c[q].at[u]);
        }
        StoreFour(state, 4 * q, 16, h[q]);
      }
    } else {
      const float* own_rates = a + static_cast<int64_t>(channel) * shape.d_state;
      const float* from = parameters + shape.dt_rank;
      for (int i = 0; i < shape.d_state; ++i) {
        const float next = NextState(state[i], delta, own_rates[i], input, from[i]);
        state[i] = next;
        sum = AddState(sum, next, from[shape.d_state + i]);
      }
    }
    return GatedOutput(sum, skip, x, gate);
  }
};

}  // namespace smt::cuda
