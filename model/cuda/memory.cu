// Writes: attention pooling in its absorbed form (the keys of the window are never formed: q . Wk x = (Wk^T q) . x),
// the Mamba-1 step (Gu, Dao: "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023) and the simple
// SSM, all in float32.
#include <cuda_bf16.h>

#include "model/cuda/kernels.h"

namespace smt::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 256;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

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
  int memory_rows, d;

  __device__ WindowRows(const Pooling& p, const Write& write, int64_t index)
      : memory(Section(p.slots, write.slot, p.slots.memory_at)),
        embeddings(static_cast<const Embedding*>(p.embeddings)),
        ids(p.ids + index * p.m),
        ld(p.ld_embeddings),
        memory_rows(write.memory_pooled),
        d(p.d) {}
  __device__ float At(int row, int column) const {
    return row < memory_rows ? memory[static_cast<int64_t>(row) * d + column]
                             : ToFloat(embeddings[ids[row - memory_rows] * ld + column]);
  }
};

template <typename Embedding>
__global__ void MeanKernel(Pooling p, float* __restrict__ mean, int64_t ld) {
  const Write write = p.writes[blockIdx.x];
  const WindowRows<Embedding> rows(p, write, blockIdx.x);
  const int count = write.memory_pooled + write.tokens;
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= p.d) return;
  float sum = 0;
  for (int row = 0; row < count; ++row) sum += rows.At(row, i);
  mean[blockIdx.x * ld + i] = sum / static_cast<float>(count);
}

template <typename Embedding>
__global__ void __launch_bounds__(kThreads)
    PoolKernel(Pooling p, const float* __restrict__ key, int64_t ld_key, float* __restrict__ weights,
               float* __restrict__ pooled, int64_t ld) {
  extern __shared__ float scores[];
  const Write write = p.writes[blockIdx.x];
  const WindowRows<Embedding> rows(p, write, blockIdx.x);
  const int count = write.memory_pooled + write.tokens, window = p.n + p.m;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float* k = key + blockIdx.x * ld_key;
  const float scale = 1.0f / sqrtf(static_cast<float>(p.d));
  for (int row = warp; row < count; row += kThreads / kWarp) {
    float score = 0;
    for (int i = lane; i < p.d; i += kWarp) score = fmaf(k[i], rows.At(row, i), score);
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) score += __shfl_xor_sync(kAll, score, offset);
    if (lane == 0) scores[row] = score * scale;
  }
  __syncthreads();
  if (warp == 0) {
    float largest = -INFINITY, sum = 0;
    for (int row = lane; row < count; row += kWarp) largest = fmaxf(largest, scores[row]);
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, offset));
    }
    for (int row = lane; row < count; row += kWarp) {
      scores[row] = expf(scores[row] - largest);
      sum += scores[row];
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
    for (int row = lane; row < count; row += kWarp) scores[row] /= sum;
    for (int row = count + lane; row < window; row += kWarp) scores[row] = 0;
  }
  __syncthreads();
  for (int row = threadIdx.x; row < window; row += kThreads) {
    weights[static_cast<int64_t>(blockIdx.x) * window + row] = scores[row];
  }
  for (int i = threadIdx.x; i < p.d; i += kThreads) {
    float sum = 0;
    for (int row = 0; row < count; ++row) sum = fmaf(scores[row], rows.At(row, i), sum);
    pooled[blockIdx.x * ld + i] = sum;
  }
}

__global__ void PushKernel(Pooling p, const float* __restrict__ output, int64_t ld) {
  const Write write = p.writes[blockIdx.x];
  float* memory = Section(p.slots, write.slot, p.slots.memory_at);
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= p.d) return;
  int at = write.memory_valid;
  if (at == p.n) {
    for (int row = 0; row + 1 < p.n; ++row) {
      memory[static_cast<int64_t>(row) * p.d + i] = memory[static_cast<int64_t>(row + 1) * p.d + i];
    }
    --at;
  }
  memory[static_cast<int64_t>(at) * p.d + i] = output[blockIdx.x * ld + i];
}

__global__ void ConvKernel(Pooling p, MambaShape shape, int layer, const float* __restrict__ xz, int64_t ld_xz,
                           const float* __restrict__ weight, const float* __restrict__ bias, float* __restrict__ y,
                           int64_t ld) {
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= shape.d_inner) return;
  float* state = Section(p.slots, p.writes[blockIdx.x].slot, p.slots.conv_at) +
                 (static_cast<int64_t>(layer) * shape.d_inner + channel) * shape.d_conv;
  const float* taps = weight + static_cast<int64_t>(channel) * shape.d_conv;
  float sum = bias[channel];
  for (int i = 0; i + 1 < shape.d_conv; ++i) {
    const float value = state[i + 1];
    state[i] = value;
    sum = fmaf(taps[i], value, sum);
  }
  const float value = xz[blockIdx.x * ld_xz + channel];
  state[shape.d_conv - 1] = value;
  sum = fmaf(taps[shape.d_conv - 1], value, sum);
  y[blockIdx.x * ld + channel] = Silu(sum);
}

__global__ void ScanKernel(Pooling p, MambaShape shape, int layer, const float* __restrict__ x, int64_t ld_x,
                           const float* __restrict__ dt, int64_t ld_dt, const float* __restrict__ parameters,
                           int64_t ld_parameters, const float* __restrict__ a, const float* __restrict__ skip,
                           const float* __restrict__ xz, int64_t ld_xz, float* __restrict__ y, int64_t ld) {
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= shape.d_inner) return;
  float* state = Section(p.slots, p.writes[blockIdx.x].slot, p.slots.state_at) +
                 (static_cast<int64_t>(layer) * shape.d_inner + channel) * shape.d_state;
  const float* rates = a + static_cast<int64_t>(channel) * shape.d_state;
  const float* b = parameters + blockIdx.x * ld_parameters + shape.dt_rank;
  const float* c = b + shape.d_state;
  const float in = x[blockIdx.x * ld_x + channel], delta = dt[blockIdx.x * ld_dt + channel];
  const float input = delta * in;
  float sum = 0;
  for (int i = 0; i < shape.d_state; ++i) {
    const float h = fmaf(expf(delta * rates[i]), state[i], input * b[i]);
    state[i] = h;
    sum = fmaf(h, c[i], sum);
  }
  const float gate = xz[blockIdx.x * ld_xz + shape.d_inner + channel];
  y[blockIdx.x * ld + channel] = fmaf(skip[channel], in, sum) * Silu(gate);
}

__global__ void SimpleKernel(Pooling p, int layer, const float* __restrict__ decay, const float* __restrict__ skip,
                             float* __restrict__ x, int64_t ld_x, const float* __restrict__ u, int64_t ld_u,
                             float* __restrict__ hidden, int64_t ld_hidden) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= p.d) return;
  float* state = Section(p.slots, p.writes[blockIdx.x].slot, p.slots.state_at) + static_cast<int64_t>(layer) * p.d;
  const float h = fmaf(decay[i], state[i], u[blockIdx.x * ld_u + i]);
  state[i] = h;
  hidden[blockIdx.x * ld_hidden + i] = h;
  float* value = x + blockIdx.x * ld_x + i;
  *value = fmaf(skip[i], *value, *value);
}

dim3 Grid(int count, int channels) {
  return {static_cast<unsigned>(count), static_cast<unsigned>((channels + kThreads - 1) / kThreads)};
}

}  // namespace

void PoolMean(const Pooling& pooling, float* mean, int64_t ld, cudaStream_t stream) {
  const dim3 grid = Grid(pooling.count, pooling.d);
  if (pooling.embedding_type == Type::kBfloat16) {
    MeanKernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(pooling, mean, ld);
  } else {
    MeanKernel<float><<<grid, kThreads, 0, stream>>>(pooling, mean, ld);
  }
  CheckCuda(cudaGetLastError(), "launching the pooling mean");
}

void PoolAttend(const Pooling& pooling, const float* key, int64_t ld_key, float* weights, float* pooled, int64_t ld,
                cudaStream_t stream) {
  // To a multiple of four: the compiler reads the last scores four at a time.
  const size_t bytes = sizeof(float) * static_cast<size_t>((pooling.n + pooling.m + 3) / 4 * 4);
  if (pooling.embedding_type == Type::kBfloat16) {
    PoolKernel<__nv_bfloat16><<<pooling.count, kThreads, bytes, stream>>>(pooling, key, ld_key, weights, pooled, ld);
  } else {
    PoolKernel<float><<<pooling.count, kThreads, bytes, stream>>>(pooling, key, ld_key, weights, pooled, ld);
  }
  CheckCuda(cudaGetLastError(), "launching the pooling");
}

void PushMemory(const Pooling& pooling, const float* output, int64_t ld, cudaStream_t stream) {
  PushKernel<<<Grid(pooling.count, pooling.d), kThreads, 0, stream>>>(pooling, output, ld);
  CheckCuda(cudaGetLastError(), "launching the push onto memory");
}

void MambaConv(const Pooling& writes, const MambaShape& shape, int layer, const float* xz, int64_t ld_xz,
               const float* weight, const float* bias, float* y, int64_t ld, cudaStream_t stream) {
  ConvKernel<<<Grid(writes.count, shape.d_inner), kThreads, 0, stream>>>(writes, shape, layer, xz, ld_xz, weight, bias,
                                                                         y, ld);
  CheckCuda(cudaGetLastError(), "launching Mamba's convolution");
}

void MambaScan(const Pooling& writes, const MambaShape& shape, int layer, const float* x, int64_t ld_x, const float* dt,
               int64_t ld_dt, const float* parameters, int64_t ld_parameters, const float* a, const float* skip,
               const float* xz, int64_t ld_xz, float* y, int64_t ld, cudaStream_t stream) {
  ScanKernel<<<Grid(writes.count, shape.d_inner), kThreads, 0, stream>>>(
      writes, shape, layer, x, ld_x, dt, ld_dt, parameters, ld_parameters, a, skip, xz, ld_xz, y, ld);
  CheckCuda(cudaGetLastError(), "launching Mamba's state update");
}

void SimpleSsm(const Pooling& writes, int layer, const float* decay, const float* skip, float* x, int64_t ld_x,
               const float* u, int64_t ld_u, float* hidden, int64_t ld_hidden, cudaStream_t stream) {
  SimpleKernel<<<Grid(writes.count, writes.d), kThreads, 0, stream>>>(writes, layer, decay, skip, x, ld_x, u, ld_u,
                                                                      hidden, ld_hidden);
  CheckCuda(cudaGetLastError(), "launching the simple SSM");
}

}  // namespace smt::cuda
