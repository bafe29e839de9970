// Kernels of many sessions' writes at once; what they do is in memory.cuh. Few writes go through write_pass.cu, many of
// one session through sequence.cu.
#include "model/cuda/addends.cuh"
#include "model/cuda/chain.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/memory.cuh"

namespace smt::cuda {
namespace {

constexpr int kThreads = 256;

constexpr int kManyRowsAhead = 25;  // half of the usual window's tokens: what takes time is to wait for them

template <typename Embedding>
__global__ void __launch_bounds__(kThreads) MeanKernel(Pooling p, float* __restrict__ mean, int64_t ld) {
  AwaitPrevious();
  LetNextBegin();
  extern __shared__ int32_t mean_ids[];
  WindowRows<Embedding> rows(p, p.writes[blockIdx.x]);
  rows.StageIds(mean_ids, 0);
  __syncthreads();
  const int i = blockIdx.y * kThreads + threadIdx.x;
  if (i < p.d) mean[blockIdx.x * ld + i] = MeanOfRows<kManyRowsAhead>(rows, i);
}

template <typename Embedding>
__global__ void ScoreKernel(Pooling p, const float* __restrict__ key, int64_t ld_key, float* __restrict__ scores) {
  AwaitPrevious();
  LetNextBegin();
  const WindowRows<Embedding> rows(p, p.writes[blockIdx.x]);
  const int row = blockIdx.y * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows.count) return;
  const float score = PoolScore(rows, row, key + blockIdx.x * ld_key, 1.0f / sqrtf(static_cast<float>(p.d)));
  if (threadIdx.x % kWarp == 0) scores[static_cast<int64_t>(blockIdx.x) * (p.n + p.m) + row] = score;
}

// To a multiple of four: the compiler reads the last weights four at a time.
__host__ __device__ constexpr int PaddedWeights(int window) { return (window + 3) / 4 * 4; }

template <typename Embedding>
__global__ void __launch_bounds__(kThreads)
    PoolKernel(Pooling p, const float* __restrict__ scores, float* __restrict__ weights, float* __restrict__ pooled,
               int64_t ld) {
  AwaitPrevious();
  LetNextBegin();
  extern __shared__ float own_weights[];
  WindowRows<Embedding> rows(p, p.writes[blockIdx.x]);
  const int window = p.n + p.m;
  rows.StageIds(reinterpret_cast<int32_t*>(own_weights + PaddedWeights(window)), kWarp);
  if (threadIdx.x < kWarp) {
    PoolSoftmax(scores + static_cast<int64_t>(blockIdx.x) * window, rows.count, window, own_weights);
  }
  __syncthreads();
  if (blockIdx.y == 0 && weights != nullptr) {
    for (int row = threadIdx.x; row < window; row += kThreads) {
      weights[static_cast<int64_t>(blockIdx.x) * window + row] = own_weights[row];
    }
  }
  const int i = blockIdx.y * kThreads + threadIdx.x;
  if (i < p.d) pooled[blockIdx.x * ld + i] = WeightedRows<kManyRowsAhead>(rows, own_weights, i);
}

__global__ void PushKernel(Pooling p, const float* __restrict__ output, int64_t ld) {
  AwaitPrevious();
  LetNextBegin();
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= p.d) return;
  const Write& write = p.writes[blockIdx.x];
  PushChannel(p, write.slot, write.memory_valid, 1, i, [&](int) { return output[blockIdx.x * ld + i]; });
}

__global__ void ConvKernel(Pooling p, MambaShape shape, int layer, const float* __restrict__ xz, int64_t ld_xz,
                           const float* __restrict__ weight, const float* __restrict__ bias, float* __restrict__ y,
                           int64_t ld, SplitRows split) {
  AwaitPrevious();
  LetNextBegin();
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= shape.d_inner) return;
  const int32_t slot = p.writes[blockIdx.x].slot;
  ConvChannel conv;
  conv.Load(p, shape, layer, slot, channel, weight, bias);
  const float value = conv.Run(p, shape, layer, slot, channel, weight, xz[blockIdx.x * ld_xz + channel]);
  const int64_t at = blockIdx.x * ld + channel;
  y[at] = value;
  if (split.high != nullptr) SplitOne(value, split.high[at], split.high[split.plane + at]);
}

// Four neighbours a thread.
constexpr int kSumThreads = 128;
__global__ void SumKernel(Addends addends, int rows, int fours, float* __restrict__ y, int64_t ldy) {
  AwaitPrevious();
  LetNextBegin();
  const int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), row = at / fours, column = 4 * (at % fours);
  if (row < rows) StoreFour(y + row * ldy + column, SumOfFour(addends, row, column));
}

// An output of in_proj a thread: channels, then, where there are addends, gates. Few instructions, and neighbouring
// lanes touch neighbouring states: four outputs a thread took twice as long.
__global__ void __launch_bounds__(kThreads)
    FinishConvKernel(Pooling p, MambaShape shape, int layer, Addends addends, float* xz, int64_t ld_xz,
                     const float* __restrict__ weight, const float* __restrict__ bias, float* __restrict__ y,
                     int64_t ld, SplitRows split) {
  const int64_t row = blockIdx.x;
  const int output = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  const bool of_channels = output < shape.d_inner;
  const int32_t slot = p.writes[row].slot;
  ConvChannel conv;
  if (of_channels) conv.Load(p, shape, layer, slot, output, weight, bias);
  AwaitPrevious();
  LetNextBegin();
  if (output >= 2 * shape.d_inner) return;
  float* const own = xz + row * ld_xz + output;
  const float value = addends.count > 0 ? SumOfOne(addends, row, output) : *own;
  if (!of_channels) {
    *own = value;
    return;
  }
  const float convolved = conv.Run(p, shape, layer, slot, output, weight, value);
  const int64_t at = row * ld + output;
  y[at] = convolved;
  SplitOne(convolved, split.high[at], split.high[split.plane + at]);
}

__global__ void ScanKernel(Pooling p, MambaShape shape, int layer, const float* __restrict__ x, int64_t ld_x,
                           const float* __restrict__ dt, int64_t ld_dt, const float* __restrict__ parameters,
                           int64_t ld_parameters, const float* __restrict__ a, const float* __restrict__ skip,
                           const float* __restrict__ xz, int64_t ld_xz, float* __restrict__ y, int64_t ld,
                           SplitRows split) {
  AwaitPrevious();
  LetNextBegin();
  const int channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= shape.d_inner) return;
  const int32_t slot = p.writes[blockIdx.x].slot;
  const float* own = parameters + blockIdx.x * ld_parameters;
  ScanChannel scan;
  scan.Load(p, shape, layer, slot, channel, a, skip, own, x[blockIdx.x * ld_x + channel],
            xz[blockIdx.x * ld_xz + shape.d_inner + channel]);
  const float value = scan.Run(p, shape, layer, slot, channel, a, own, dt[blockIdx.x * ld_dt + channel]);
  StoreOutput(value, blockIdx.x * ld + channel, y, split);
}

__global__ void SimpleKernel(Pooling p, int layer, const float* __restrict__ decay, const float* __restrict__ skip,
                             float* __restrict__ x, int64_t ld_x, const float* __restrict__ u, int64_t ld_u,
                             float* __restrict__ hidden, int64_t ld_hidden) {
  AwaitPrevious();
  LetNextBegin();
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= p.d) return;
  float* state = Section(p.slots, p.writes[blockIdx.x].slot, p.slots.state_at) + static_cast<int64_t>(layer) * p.d;
  const float h = NextSimpleState(state[i], decay[i], u[blockIdx.x * ld_u + i]);
  state[i] = h;
  hidden[blockIdx.x * ld_hidden + i] = h;
  float* value = x + blockIdx.x * ld_x + i;
  *value = SkipSimple(*value, skip[i]);
}

dim3 Grid(int count, int channels) {
  return {static_cast<unsigned>(count), static_cast<unsigned>((channels + kThreads - 1) / kThreads)};
}

}  // namespace

void PoolMean(const Pooling& pooling, float* mean, int64_t ld, cudaStream_t stream) {
  const dim3 grid = Grid(pooling.count, pooling.d);
  const size_t bytes = sizeof(int32_t) * static_cast<size_t>(pooling.m);
  if (pooling.embedding_type == Type::kBfloat16) {
    LaunchChained(MeanKernel<__nv_bfloat16>, grid, kThreads, bytes, stream, "launching the pooling mean", pooling, mean,
                  ld);
  } else {
    LaunchChained(MeanKernel<float>, grid, kThreads, bytes, stream, "launching the pooling mean", pooling, mean, ld);
  }
}

void PoolAttend(const Pooling& pooling, const float* key, int64_t ld_key, float* scores, float* weights, float* pooled,
                int64_t ld, cudaStream_t stream) {
  const size_t bytes = sizeof(float) * static_cast<size_t>(PaddedWeights(pooling.n + pooling.m) + pooling.m);
  constexpr int kRows = kThreads / kWarp;
  const dim3 by_rows(static_cast<unsigned>(pooling.count),
                     static_cast<unsigned>((pooling.n + pooling.m + kRows - 1) / kRows));
  const dim3 by_channels = Grid(pooling.count, pooling.d);
  const auto launch = [&](auto score, auto pool) {
    LaunchChained(score, by_rows, kThreads, 0, stream, "launching the pooling's scores", pooling, key, ld_key, scores);
    LaunchChained(pool, by_channels, kThreads, bytes, stream, "launching the pooling", pooling, scores, weights, pooled,
                  ld);
  };
  if (pooling.embedding_type == Type::kBfloat16) {
    launch(ScoreKernel<__nv_bfloat16>, PoolKernel<__nv_bfloat16>);
  } else {
    launch(ScoreKernel<float>, PoolKernel<float>);
  }
}

void PushMemory(const Pooling& pooling, const float* output, int64_t ld, cudaStream_t stream) {
  LaunchChained(PushKernel, Grid(pooling.count, pooling.d), kThreads, 0, stream, "launching the push onto memory",
                pooling, output, ld);
}

void MambaConv(const Pooling& writes, const MambaShape& shape, int layer, const float* xz, int64_t ld_xz,
               const float* weight, const float* bias, float* y, int64_t ld, const SplitRows& split,
               cudaStream_t stream) {
  LaunchChained(ConvKernel, Grid(writes.count, shape.d_inner), kThreads, 0, stream, "launching Mamba's convolution",
                writes, shape, layer, xz, ld_xz, weight, bias, y, ld, split);
}

void SumAddends(const Addends& addends, int rows, int n, float* y, int64_t ldy, cudaStream_t stream) {
  const int fours = (n + 3) / 4;
  LaunchChained(SumKernel, static_cast<unsigned>((rows * fours + kSumThreads - 1) / kSumThreads), kSumThreads, 0,
                stream, "launching a sum", addends, rows, fours, y, ldy);
}

bool CanFinishConv(const MambaShape& shape) { return shape.d_conv == 4; }

void FinishAndConvolve(const Pooling& writes, const MambaShape& shape, int layer, const Addends& addends, float* xz,
                       int64_t ld_xz, const float* weight, const float* bias, float* y, int64_t ld,
                       const SplitRows& split, cudaStream_t stream) {
  const int outputs = (addends.count > 0 ? 2 : 1) * shape.d_inner;
  LaunchChained(FinishConvKernel, Grid(writes.count, outputs), kThreads, 0, stream, "launching Mamba's convolution",
                writes, shape, layer, addends, xz, ld_xz, weight, bias, y, ld, split);
}

void MambaScan(const Pooling& writes, const MambaShape& shape, int layer, const float* x, int64_t ld_x, const float* dt,
               int64_t ld_dt, const float* parameters, int64_t ld_parameters, const float* a, const float* skip,
               const float* xz, int64_t ld_xz, float* y, int64_t ld, const SplitRows& split, cudaStream_t stream) {
  LaunchChained(ScanKernel, Grid(writes.count, shape.d_inner), kThreads, 0, stream, "launching Mamba's state update",
                writes, shape, layer, x, ld_x, dt, ld_dt, parameters, ld_parameters, a, skip, xz, ld_xz, y, ld, split);
}

void SimpleSsm(const Pooling& writes, int layer, const float* decay, const float* skip, float* x, int64_t ld_x,
               const float* u, int64_t ld_u, float* hidden, int64_t ld_hidden, cudaStream_t stream) {
  LaunchChained(SimpleKernel, Grid(writes.count, writes.d), kThreads, 0, stream, "launching the simple SSM", writes,
                layer, decay, skip, x, ld_x, u, ld_u, hidden, ld_hidden);
}

}  // namespace smt::cuda
