// Kernels of many writes at once; what they do is in memory.cuh. Few writes go through write_pass.cu.
#include "model/cuda/kernels.h"
#include "model/cuda/memory.cuh"

namespace smt::cuda {
namespace {

constexpr int kThreads = 256;

template <typename Embedding>
__global__ void MeanKernel(Pooling p, float* __restrict__ mean, int64_t ld) {
  const WindowRows<Embedding> rows(p, p.writes[blockIdx.x], blockIdx.x);
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i < p.d) mean[blockIdx.x * ld + i] = MeanOfRows(rows, i);
}

template <typename Embedding>
__global__ void __launch_bounds__(kThreads)
    PoolKernel(Pooling p, const float* __restrict__ key, int64_t ld_key, float* __restrict__ weights,
               float* __restrict__ pooled, int64_t ld) {
  extern __shared__ float scores[];
  const WindowRows<Embedding> rows(p, p.writes[blockIdx.x], blockIdx.x);
  const int window = p.n + p.m, warp = threadIdx.x / kWarp;
  const float scale = 1.0f / sqrtf(static_cast<float>(p.d));
  for (int row = warp; row < rows.count; row += kThreads / kWarp) {
    const float score = PoolScore(rows, row, key + blockIdx.x * ld_key, scale);
    if (threadIdx.x % kWarp == 0) scores[row] = score;
  }
  __syncthreads();
  if (warp == 0) PoolSoftmax(scores, rows.count, window, scores);
  __syncthreads();
  for (int row = threadIdx.x; row < window; row += kThreads) {
    weights[static_cast<int64_t>(blockIdx.x) * window + row] = scores[row];
  }
  for (int i = threadIdx.x; i < p.d; i += kThreads) pooled[blockIdx.x * ld + i] = WeightedRows(rows, scores, i);
}

__global__ void PushKernel(Pooling p, const float* __restrict__ output, int64_t ld) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i < p.d) PushChannel(p, p.writes[blockIdx.x], i, output[blockIdx.x * ld + i]);
}

__global__ void ConvKernel(Pooling p, MambaShape shape, int layer, const float* __restrict__ xz, int64_t ld_xz,
                           const float* __restrict__ weight, const float* __restrict__ bias, float* __restrict__ y,
                           int64_t ld) {
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= shape.d_inner) return;
  const int32_t slot = p.writes[blockIdx.x].slot;
  ConvChannel conv;
  conv.Load(p, shape, layer, slot, channel, weight, bias);
  y[blockIdx.x * ld + channel] = conv.Run(p, shape, layer, slot, channel, weight, xz[blockIdx.x * ld_xz + channel]);
}

__global__ void ScanKernel(Pooling p, MambaShape shape, int layer, const float* __restrict__ x, int64_t ld_x,
                           const float* __restrict__ dt, int64_t ld_dt, const float* __restrict__ parameters,
                           int64_t ld_parameters, const float* __restrict__ a, const float* __restrict__ skip,
                           const float* __restrict__ xz, int64_t ld_xz, float* __restrict__ y, int64_t ld) {
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= shape.d_inner) return;
  const int32_t slot = p.writes[blockIdx.x].slot;
  const float* own = parameters + blockIdx.x * ld_parameters;
  ScanChannel scan;
  scan.Load(p, shape, layer, slot, channel, a, skip, own, x[blockIdx.x * ld_x + channel],
            xz[blockIdx.x * ld_xz + shape.d_inner + channel]);
  y[blockIdx.x * ld + channel] = scan.Run(p, shape, layer, slot, channel, a, own, dt[blockIdx.x * ld_dt + channel]);
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
