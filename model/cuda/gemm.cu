// Matrix products with one summation order for every number of rows (kernels.h).
//
// float32: a warp's lanes take 32 neighbouring outputs of the k-major weights, its rows stay in registers.
// bfloat16: tensor cores, the weights being the 16-row operand so that a single row wastes only 7 of 8 columns.
#include <cuda_bf16.h>

#include "model/cuda/kernels.h"

namespace smt::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kFloatChunks = 32;  // pieces of a float32 product

__device__ __forceinline__ float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu: {  // GPT-2's tanh form
      const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
      return 0.5f * x * (1.0f + tanhf(inner));
    }
    case Activation::kRelu:
      return fmaxf(x, 0.0f);
    case Activation::kSoftplus:  // as LibTorch: linear above 20
      return x > 20.0f ? x : log1pf(expf(x));
  }
  return x;
}

template <typename T>
struct Epilogue {
  const float* bias;
  void* y;
  int64_t ldy;
  bool float_output;
  const float* residual;
  Activation activation;
  int rows, n;

  __device__ __forceinline__ void Store(int row, int j, float sum) const {
    if (row >= rows || j >= n) return;
    float value = Activate(activation, bias != nullptr ? sum + bias[j] : sum);
    const int64_t at = row * ldy + j;
    if (residual != nullptr) value += residual[at];
    if (float_output) {
      static_cast<float*>(y)[at] = value;
    } else {
      static_cast<T*>(y)[at] = static_cast<T>(value);
    }
  }
};

// Grid (ceil(n / 32), ceil(rows / kRows)); each of kWarps warps sums its share of the kFloatChunks pieces. Few rows
// take more warps, for loads in flight; many take fewer, for registers.
template <int kRows, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp)
    LinearFloat(const float* __restrict__ weight, int64_t ldw, const float* __restrict__ x, int64_t ldx, int k,
                Epilogue<float> epilogue) {
  __shared__ float partial[kFloatChunks][kRows][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int j = blockIdx.x * kWarp + lane, row0 = blockIdx.y * kRows;
  const int length = k / kFloatChunks;
  for (int chunk = warp; chunk < kFloatChunks; chunk += kWarps) {
    const int first = chunk * length;
    float sum[kRows] = {};
    const float* in[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) in[r] = x + static_cast<int64_t>(min(row0 + r, epilogue.rows - 1)) * ldx + first;
    const float* w = weight + first * ldw + j;
#pragma unroll 4
    for (int i = 0; i < length; i += 4) {
      float column[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) column[u] = w[(i + u) * ldw];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 v = *reinterpret_cast<const float4*>(in[r] + i);
        sum[r] = fmaf(v.x, column[0], sum[r]);
        sum[r] = fmaf(v.y, column[1], sum[r]);
        sum[r] = fmaf(v.z, column[2], sum[r]);
        sum[r] = fmaf(v.w, column[3], sum[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) partial[chunk][r][lane] = sum[r];
  }
  __syncthreads();
  for (int r = warp; r < kRows; r += kWarps) {
    float total = 0;
#pragma unroll
    for (int c = 0; c < kFloatChunks; ++c) total += partial[c][r][lane];
    epilogue.Store(row0 + r, j, total);
  }
}

__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t Pair(const __nv_bfloat16* p) { return *reinterpret_cast<const uint32_t*>(p); }

// Few rows: a block makes 16 outputs of 8 kTiles rows, warp w sums piece w straight from global memory.
template <int kTiles>
__global__ void __launch_bounds__(kChunks* kWarp)
    LinearFewRows(const __nv_bfloat16* __restrict__ weight, const __nv_bfloat16* __restrict__ x, int64_t ldx, int k,
                  Epilogue<__nv_bfloat16> epilogue) {
  __shared__ float partial[kChunks][kTiles][4][kWarp];
  const int lane = threadIdx.x % kWarp, chunk = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int j0 = blockIdx.x * 16, row0 = blockIdx.y * 8 * kTiles;
  const int length = k / kChunks, first = chunk * length;
  const __nv_bfloat16* w = weight + static_cast<int64_t>(j0 + g) * k + first + 2 * t;
  const int64_t eight = static_cast<int64_t>(8) * k;
  const __nv_bfloat16* in[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    in[i] = x + static_cast<int64_t>(min(row0 + i * 8 + g, epilogue.rows - 1)) * ldx + first + 2 * t;
  }
  float sum[kTiles][4] = {};
#pragma unroll 6
  for (int i = 0; i < length; i += 16) {
    const uint32_t a[4] = {Pair(w + i), Pair(w + eight + i), Pair(w + i + 8), Pair(w + eight + i + 8)};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) MultiplyAdd(sum[tile], a, Pair(in[tile] + i), Pair(in[tile] + i + 8));
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) partial[chunk][tile][e][lane] = sum[tile][e];
  }
  __syncthreads();
  for (int at = chunk; at < kTiles * 4; at += kChunks) {
    const int tile = at / 4, e = at % 4;
    float total = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) total += partial[c][tile][e][lane];
    epilogue.Store(row0 + tile * 8 + 2 * t + (e & 1), j0 + g + (e / 2) * 8, total);
  }
}

// Many rows: tiles of kOutputs x kRowsTile through shared memory, the pieces one after the other.
constexpr int kOutputs = 64, kRowsTile = 64, kDepth = 64, kStages = 4, kStride = kDepth + 8;
constexpr int kTileElements = kOutputs * kStride;
constexpr int kManyShared = kStages * 2 * kTileElements * 2;

__device__ __forceinline__ void CopyAsync(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from));
}

__global__ void __launch_bounds__(256)
    LinearManyRows(const __nv_bfloat16* __restrict__ weight, const __nv_bfloat16* __restrict__ x, int64_t ldx, int k,
                   Epilogue<__nv_bfloat16> epilogue) {
  extern __shared__ __nv_bfloat16 shared[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int j0 = blockIdx.y * kOutputs, row0 = blockIdx.x * kRowsTile;
  const int outputs_of_warp = warp % 4 * 16, rows_of_warp = warp / 4 * 32;
  const int blocks = k / kDepth;
  const auto load = [&](int block) {
    if (block < blocks) {
      __nv_bfloat16* w = shared + (block % kStages) * 2 * kTileElements;
      __nv_bfloat16* in = w + kTileElements;
#pragma unroll
      for (int piece = 0; piece < 2; ++piece) {
        const int at = threadIdx.x + piece * 256, r = at / 8, c = at % 8 * 8;
        CopyAsync(w + r * kStride + c, weight + static_cast<int64_t>(j0 + r) * k + block * kDepth + c);
        CopyAsync(in + r * kStride + c,
                  x + static_cast<int64_t>(min(row0 + r, epilogue.rows - 1)) * ldx + block * kDepth + c);
      }
    }
    asm volatile("cp.async.commit_group;");
  };
  float sum[4][4] = {}, total[4][4] = {};
  const int piece_steps = k / kChunks / 16;
  int step = 0;
  for (int i = 0; i < kStages - 1; ++i) load(i);
  for (int block = 0; block < blocks; ++block) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
    __syncthreads();
    load(block + kStages - 1);
    const __nv_bfloat16* w = shared + (block % kStages) * 2 * kTileElements + (outputs_of_warp + g) * kStride + 2 * t;
    const __nv_bfloat16* in =
        shared + (block % kStages) * 2 * kTileElements + kTileElements + (rows_of_warp + g) * kStride + 2 * t;
#pragma unroll
    for (int i = 0; i < kDepth; i += 16) {
      const uint32_t a[4] = {Pair(w + i), Pair(w + 8 * kStride + i), Pair(w + i + 8), Pair(w + 8 * kStride + i + 8)};
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        const __nv_bfloat16* b = in + tile * 8 * kStride + i;
        MultiplyAdd(sum[tile], a, Pair(b), Pair(b + 8));
      }
      if (++step == piece_steps) {
        step = 0;
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            total[tile][e] += sum[tile][e];
            sum[tile][e] = 0;
          }
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      epilogue.Store(row0 + rows_of_warp + tile * 8 + 2 * t + (e & 1), j0 + outputs_of_warp + g + (e / 2) * 8,
                     total[tile][e]);
    }
  }
}

int Ceil(int a, int b) { return (a + b - 1) / b; }

template <typename T>
Epilogue<T> EpilogueOf(const Linear& linear, const LinearCall& call) {
  return {linear.bias, call.y, call.ldy, call.float_output, call.residual, call.activation, call.rows, linear.n};
}

void RunFloat(const Linear& linear, const LinearCall& call, cudaStream_t stream) {
  const auto* weight = static_cast<const float*>(linear.weight);
  const auto* x = static_cast<const float*>(call.x);
  const int64_t ldw = static_cast<int64_t>(Ceil(linear.n, kWarp)) * kWarp;
  const Epilogue<float> epilogue = EpilogueOf<float>(linear, call);
  const auto launch = [&](auto kernel, int rows, int warps) {
    const dim3 grid(Ceil(linear.n, kWarp), Ceil(call.rows, rows));
    kernel<<<grid, warps * kWarp, 0, stream>>>(weight, ldw, x, call.ldx, linear.k, epilogue);
  };
  if (call.rows == 1) {
    launch(LinearFloat<1, 32>, 1, 32);
  } else if (call.rows <= 16) {
    launch(LinearFloat<4, 32>, 4, 32);
  } else {
    launch(LinearFloat<8, 16>, 8, 16);
  }
}

void RunBfloat16(const Linear& linear, const LinearCall& call, cudaStream_t stream) {
  const auto* weight = static_cast<const __nv_bfloat16*>(linear.weight);
  const auto* x = static_cast<const __nv_bfloat16*>(call.x);
  const Epilogue<__nv_bfloat16> epilogue = EpilogueOf<__nv_bfloat16>(linear, call);
  const auto few = [&](auto kernel, int tiles) {
    const dim3 grid(Ceil(linear.n, 16), Ceil(call.rows, 8 * tiles));
    kernel<<<grid, kChunks * kWarp, 0, stream>>>(weight, x, call.ldx, linear.k, epilogue);
  };
  if (call.rows <= 8) {
    few(LinearFewRows<1>, 1);
  } else if (call.rows <= 16) {
    few(LinearFewRows<2>, 2);
  } else if (call.rows <= 32) {
    few(LinearFewRows<4>, 4);
  } else {
    static const cudaError_t raised =
        cudaFuncSetAttribute(LinearManyRows, cudaFuncAttributeMaxDynamicSharedMemorySize, kManyShared);
    CheckCuda(raised, "raising the shared memory of LinearManyRows");
    // Neighbouring blocks share their weights.
    const dim3 grid(Ceil(call.rows, kRowsTile), Ceil(linear.n, kOutputs));
    LinearManyRows<<<grid, 256, kManyShared, stream>>>(weight, x, call.ldx, linear.k, epilogue);
  }
}

}  // namespace

void RunLinear(const Linear& linear, const LinearCall& call, cudaStream_t stream) {
  if (call.rows == 0) return;
  if (linear.type == Type::kFloat32) {
    RunFloat(linear, call, stream);
  } else {
    RunBfloat16(linear, call, stream);
  }
  CheckCuda(cudaGetLastError(), "launching a matrix product");
}

}  // namespace smt::cuda
