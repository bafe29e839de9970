// The window's kernels besides its matrix products: embedding, norms, the key/value cache, attention. Few rows go
// through window_pass.cu.
#include <cuda_bf16.h>

#include "model/cuda/addends.cuh"
#include "model/cuda/attention.cuh"
#include "model/cuda/chain.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/window.cuh"

namespace smt::cuda {
namespace {

constexpr int kNormRows = 4;  // of a block, a warp each

// `To`: a pointer or SplitTo.
template <typename To>
__global__ void __launch_bounds__(kNormRows* kWarp)
    NormalizeKernel(const float* __restrict__ x, int64_t ldx, const int32_t* __restrict__ to_rows, int rows, int d,
                    const float* __restrict__ weight, const float* __restrict__ bias, float epsilon, To y,
                    int64_t ldy) {
  AwaitPrevious();
  LetNextBegin();
  const int64_t row = blockIdx.x * kNormRows + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t to = to_rows != nullptr ? to_rows[row] : row;
  NormalizeRow(x + row * ldx, d, weight, bias, epsilon, y + to * ldy);
}

// A block has a row, a warp a part of it (NormalizeRow), to the same bits.
template <typename To>
__global__ void __launch_bounds__(kNormThreads)
    FinishKernel(const Addends addends, const float* __restrict__ bias, float* x, int64_t ldx,
                 const int32_t* __restrict__ to_rows, int d, Norm norm, float epsilon, To y, int64_t ldy) {
  __shared__ float sums[2][kNormParts];
  LetNextBegin();  // a product, which waits for all but its weights
  const int column = 4 * static_cast<int>(threadIdx.x);
  const bool has = column < d;
  const int from = has ? column : 0;
  const Four w = *reinterpret_cast<const Four*>(norm.weight + from);
  const Four b = norm.bias != nullptr ? *reinterpret_cast<const Four*>(norm.bias + from) : Four{};
  const Four added = bias != nullptr ? *reinterpret_cast<const Four*>(bias + from) : Four{};
  AwaitPrevious();
  const int64_t row = blockIdx.x, to = to_rows != nullptr ? to_rows[row] : row;
  Four v = *reinterpret_cast<const Four*>(x + row * ldx + from);
  if (addends.count > 0) {
    Four sum = SumOfFour(addends, row, from);
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (bias != nullptr) sum.at[u] += added.at[u];
      v.at[u] = sum.at[u] + v.at[u];
    }
    if (has) StoreFour(x + row * ldx + column, v);
  }
  NormalizeTogether(v, has, d, w, b, norm.bias != nullptr, epsilon, sums, y + to * ldy);
}

__global__ void AppendKernel(const Append* appends, int count, IdRings rings) {
  AwaitPrevious();
  LetNextBegin();
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const Append append = appends[at];
  const int32_t id = append.id >= 0 ? append.id : rings.last[append.slot];
  // None could be drawn: whoever asked for it is told, and something has to stand here.
  rings.ids[static_cast<int64_t>(append.slot) * rings.size + append.index] = id >= 0 ? id : 0;
}

template <typename Embedding>
__global__ void EmbedKernel(const Row* __restrict__ rows, SlotMemory slots, IdRings rings,
                            const Embedding* __restrict__ embeddings, int64_t ld_embeddings,
                            const float* __restrict__ positions, int d, Type type, float* __restrict__ x, int64_t ldx) {
  AwaitPrevious();
  LetNextBegin();
  EmbedRow(rows[blockIdx.x], slots, rings, embeddings, ld_embeddings, positions, d, type, x + blockIdx.x * ldx);
}

// In words of four bytes; rows are padded to many of them.
__global__ void GatherKernel(const uint32_t* __restrict__ from, int64_t words, const int32_t* __restrict__ order,
                             uint32_t* __restrict__ to) {
  AwaitPrevious();
  LetNextBegin();
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) {
    to[blockIdx.x * words + i] = from[order[blockIdx.x] * words + i];
  }
}

template <typename T>
__global__ void StoreKernel(Cache cache, int layer, const Row* __restrict__ rows, const T* __restrict__ qkv,
                            int64_t ld) {
  const Row row = rows[blockIdx.x];
  T* keys = static_cast<T*>(cache.base) + row.slot * cache.slot_stride + layer * cache.layer_stride +
            static_cast<int64_t>(row.column) * cache.d;
  T* values = keys + static_cast<int64_t>(cache.window) * cache.d;
  const T* from = qkv + blockIdx.x * ld;
  for (int i = threadIdx.x; i < cache.d; i += blockDim.x) {
    keys[i] = from[cache.d + i];
    values[i] = from[2 * cache.d + i];
  }
}

// A warp an output row and head; a lane a key, then a lane a channel.
constexpr int kAttendWarps = 4;

template <typename T>
__global__ void AttendKernel(Cache cache, int layer, const Row* __restrict__ rows, const int32_t* __restrict__ order,
                             int count, const T* __restrict__ qkv, int64_t ld, int heads, int n, float scale,
                             T* __restrict__ out, int64_t ld_out) {
  extern __shared__ float shared[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kAttendWarps + warp;
  if (task >= static_cast<int64_t>(count) * heads) return;
  const int64_t to = task / heads;
  const int head = static_cast<int>(task % heads), width = cache.d / heads;
  const int64_t from = order != nullptr ? order[to] : to;
  const Row row = rows[from];
  float* query = shared + warp * (width + cache.window);
  float* scores = query + width;
  const T* q = qkv + from * ld + head * width;
  for (int i = lane; i < width; i += kWarp) query[i] = ToFloat(q[i]);
  __syncwarp();

  const T* keys =
      static_cast<const T*>(cache.base) + row.slot * cache.slot_stride + layer * cache.layer_stride + head * width;
  const T* values = keys + static_cast<int64_t>(cache.window) * cache.d;
  const int memory = row.column < n ? row.column + 1 : row.memory_valid;
  const int seen = row.column < n ? memory : memory + row.column - n + 1;
  float largest = -INFINITY;
  for (int key = lane; key < seen; key += kWarp) {
    const int64_t column = key < memory ? key : n + key - memory;
    const T* k = keys + column * cache.d;
    float score = 0;
    if (width % 8 == 0 && cache.d % 8 == 0 && sizeof(T) == 2) {
#pragma unroll 8
      for (int i = 0; i < width; i += 8) {
        const uint4 bits = *reinterpret_cast<const uint4*>(k + i);
        const T* eight = reinterpret_cast<const T*>(&bits);
#pragma unroll
        for (int u = 0; u < 8; ++u) score = fmaf(query[i + u], ToFloat(eight[u]), score);
      }
    } else {
      for (int i = 0; i < width; ++i) score = fmaf(query[i], ToFloat(k[i]), score);
    }
    score *= scale;
    scores[key] = score;
    largest = fmaxf(largest, score);
  }
  largest = WarpMax(largest);
  float sum = 0;
  for (int key = lane; key < seen; key += kWarp) {
    const float weight = expf(scores[key] - largest);
    scores[key] = weight;
    sum += weight;
  }
  sum = WarpSum(sum);
  __syncwarp();
  // Loads in flight: a lane takes two channels where it can, and several keys at a time.
  if (width % 2 == 0 && cache.d % 2 == 0 && ld_out % 2 == 0 && sizeof(T) == 2) {
    for (int i = 2 * lane; i < width; i += 2 * kWarp) {
      float first = 0, second = 0;
#pragma unroll 8
      for (int key = 0; key < seen; ++key) {
        const int64_t column = key < memory ? key : n + key - memory;
        const uint32_t bits = *reinterpret_cast<const uint32_t*>(values + column * cache.d + i);
        const T* two = reinterpret_cast<const T*>(&bits);
        first = fmaf(scores[key], ToFloat(two[0]), first);
        second = fmaf(scores[key], ToFloat(two[1]), second);
      }
      T* to_two = out + to * ld_out + head * width + i;
      to_two[0] = static_cast<T>(first / sum);
      to_two[1] = static_cast<T>(second / sum);
    }
    return;
  }
  for (int i = lane; i < width; i += kWarp) {
    float value = 0;
    for (int key = 0; key < seen; ++key) {
      const int64_t column = key < memory ? key : n + key - memory;
      value = fmaf(scores[key], ToFloat(values[column * cache.d + i]), value);
    }
    out[to * ld_out + head * width + i] = static_cast<T>(value / sum);
  }
}

constexpr int kGroupThreads = (kMaxGroupKeys + 15) / 16 * kWarp;  // a warp for every 16 rows that a group can have

// Groups of few rows wait for memory: they take few registers, so that many blocks fit. Neighbouring blocks are
// neighbouring heads, whose keys and values are neighbours in memory. `beside`: the kernel before is this one for other
// groups, whose blocks have all seen what came before it when this one's begin.
template <typename E, int kWidth, bool kFew>
__global__ void __launch_bounds__(kGroupThreads, kFew ? 8 : 5)
    GroupKernel(GroupAttentionCall<E> call, const Group* __restrict__ groups, int first, bool beside) {
  __shared__ __align__(16) std::byte shared[GroupAttention<kWidth>::kShared];
  const int group = first + static_cast<int>(blockIdx.y);
  AttendGroup<kWidth, kGroupThreads, kFew>(call, groups[group], group, static_cast<int>(blockIdx.x), shared, [&] {
    if (!beside) AwaitPrevious();
    LetNextBegin();
  });
  // Only so that this kernel does not end before the one beside it.
  if (beside && blockIdx.x == 0 && blockIdx.y == 0) AwaitPrevious();
}

constexpr int kRowThreads = 192;

// Calls with(number) of the window's type.
template <typename With>
void WithType(Type type, With with) {
  if (type == Type::kBfloat16) {
    with(__nv_bfloat16());
  } else if (type == Type::kFloat16) {
    with(__half());
  } else {
    with(float());
  }
}

template <typename To>
void LaunchNorm(const float* x, int64_t ldx, const int32_t* to_rows, int rows, int d, const float* weight,
                const float* bias, float epsilon, To y, int64_t ldy, cudaStream_t stream) {
  LaunchChained(NormalizeKernel<To>, static_cast<unsigned>((rows + kNormRows - 1) / kNormRows), kNormRows * kWarp, 0,
                stream, "launching a norm", x, ldx, to_rows, rows, d, weight, bias, epsilon, y, ldy);
}

template <typename To>
void LaunchFinish(const Addends& addends, const float* bias, float* x, int64_t ldx, const int32_t* to_rows, int rows,
                  int d, const Norm& norm, float epsilon, To y, int64_t ldy, cudaStream_t stream) {
  LaunchChained(FinishKernel<To>, static_cast<unsigned>(rows), kNormThreads, 0, stream, "launching a norm", addends,
                bias, x, ldx, to_rows, d, norm, epsilon, y, ldy);
}

}  // namespace

void AppendIds(const Append* appends, int count, const IdRings& rings, cudaStream_t stream) {
  if (count == 0) return;
  constexpr int kThreads = 256;
  LaunchChained(AppendKernel, (count + kThreads - 1) / kThreads, kThreads, 0, stream, "launching the ids' kernel",
                appends, count, rings);
}

void EmbedRows(Type type, Type embedding_type, const Row* rows, int count, const SlotMemory& slots,
               const IdRings& rings, const void* embeddings, int64_t ld_embeddings, const float* positions, int d,
               float* x, int64_t ldx, cudaStream_t stream) {
  if (count == 0) return;
  if (embedding_type == Type::kBfloat16) {
    LaunchChained(EmbedKernel<__nv_bfloat16>, count, kRowThreads, 0, stream, "launching the embedding", rows, slots,
                  rings, static_cast<const __nv_bfloat16*>(embeddings), ld_embeddings, positions, d, type, x, ldx);
  } else {
    LaunchChained(EmbedKernel<float>, count, kRowThreads, 0, stream, "launching the embedding", rows, slots, rings,
                  static_cast<const float*>(embeddings), ld_embeddings, positions, d, type, x, ldx);
  }
  CheckCuda(cudaGetLastError(), "launching the embedding");
}

void Normalize(Type out_type, const float* x, int64_t ldx, const int32_t* to_rows, int rows, int d, const float* weight,
               const float* bias, float epsilon, void* y, int64_t ldy, cudaStream_t stream) {
  if (rows == 0) return;
  const auto launch = [&](auto* to) { LaunchNorm(x, ldx, to_rows, rows, d, weight, bias, epsilon, to, ldy, stream); };
  WithType(out_type, [&](auto number) { launch(static_cast<decltype(number)*>(y)); });
}

void FinishAndNormalize(Type out_type, const Addends& addends, const float* bias, float* x, int64_t ldx,
                        const int32_t* to_rows, int rows, int d, const Norm& norm, float epsilon, void* y, int64_t ldy,
                        cudaStream_t stream) {
  if (rows == 0) return;
  WithType(out_type, [&](auto number) {
    LaunchFinish(addends, bias, x, ldx, to_rows, rows, d, norm, epsilon, static_cast<decltype(number)*>(y), ldy,
                 stream);
  });
}
void FinishAndNormalizeSplit(const Addends& addends, float* x, int64_t ldx, int rows, int d, const float* weight,
                             float epsilon, const SplitRows& y, int64_t ldy, cudaStream_t stream) {
  LaunchFinish(addends, nullptr, x, ldx, nullptr, rows, d, {weight, nullptr}, epsilon,
               SplitTo{y.high, y.high + y.plane}, ldy, stream);
}
void NormalizeSplit(const float* x, int64_t ldx, int rows, int d, const float* weight, float epsilon,
                    const SplitRows& y, int64_t ldy, cudaStream_t stream) {
  LaunchNorm(x, ldx, nullptr, rows, d, weight, nullptr, epsilon, SplitTo{y.high, y.high + y.plane}, ldy, stream);
}

void GatherRows(Type type, const void* from, int64_t ld, const int32_t* order, int count, void* to,
                cudaStream_t stream) {
  if (count == 0) return;
  LaunchChained(GatherKernel, count, kRowThreads, 0, stream, "launching a gather", static_cast<const uint32_t*>(from),
                ld * SizeOf(type) / 4, order, static_cast<uint32_t*>(to));
}

void StoreKeysValues(const Cache& cache, int layer, const Row* rows, int count, const void* qkv, int64_t ld,
                     cudaStream_t stream) {
  if (count == 0) return;
  WithType(cache.type, [&](auto number) {
    StoreKernel<<<count, kRowThreads, 0, stream>>>(cache, layer, rows, static_cast<const decltype(number)*>(qkv), ld);
  });
  CheckCuda(cudaGetLastError(), "launching the key/value store");
}

void Attend(const Cache& cache, int layer, const Row* rows, const int32_t* order, int count, const void* qkv,
            int64_t ld, int heads, int n, void* out, int64_t ld_out, cudaStream_t stream) {
  if (count == 0) return;
  const int64_t tasks = static_cast<int64_t>(count) * heads;
  const unsigned blocks = static_cast<unsigned>((tasks + kAttendWarps - 1) / kAttendWarps);
  const int width = cache.d / heads;
  const size_t bytes = sizeof(float) * kAttendWarps * static_cast<size_t>(width + cache.window);
  const float scale = 1.0f / sqrtf(static_cast<float>(width));
  const auto launch = [&](auto kernel, auto* q, auto* o) {
    if (bytes > 48 * 1024) {
      CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
                "raising the shared memory of attention");
    }
    kernel<<<blocks, kAttendWarps * kWarp, bytes, stream>>>(cache, layer, rows, order, count, q, ld, heads, n, scale, o,
                                                            ld_out);
  };
  WithType(cache.type, [&](auto number) {
    using T = decltype(number);
    launch(AttendKernel<T>, static_cast<const T*>(qkv), static_cast<T*>(out));
  });
  CheckCuda(cudaGetLastError(), "launching attention");
}

bool CanAttendGroups(const Cache& cache, int heads) {
  const int width = cache.d / heads;
  return IsShort(cache.type) && (width == 32 || width == 64) && cache.window <= kMaxGroupKeys;
}

void AttendGroups(const Cache& cache, int layer, const Group* groups, int count, int few, const void* qkv, int64_t ld,
                  int heads, int n, bool keep_tokens, bool only_last, void* out, int64_t ld_out, cudaStream_t stream) {
  if (count == 0) return;
  const int width = cache.d / heads;
  if (only_last) few = count;
  const auto attend = [&](auto number) {
    using E = decltype(number);
    const GroupAttentionCall<E> call = {.cache = cache,
                                        .layer = layer,
                                        .n = n,
                                        .qkv = static_cast<const E*>(qkv),
                                        .ld = ld,
                                        .scale = GroupScale(width),
                                        .keep_tokens = keep_tokens,
                                        .only_last = only_last,
                                        .out = static_cast<E*>(out),
                                        .ld_out = ld_out};
    const auto launch = [&](auto kernel, int from, int to, bool beside) {
      if (from == to) return;
      const dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(to - from));
      LaunchChained(kernel, grid, kGroupThreads, 0, stream, "launching attention", call, groups, from, beside);
    };
    launch(width == 64 ? GroupKernel<E, 64, false> : GroupKernel<E, 32, false>, few, count, false);
    launch(width == 64 ? GroupKernel<E, 64, true> : GroupKernel<E, 32, true>, 0, few, few < count && CanChain());
  };
  if (cache.type == Type::kFloat16) {
    attend(__half());
  } else {
    attend(__nv_bfloat16());
  }
}

}  // namespace smt::cuda
