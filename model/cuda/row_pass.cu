// One row alone through the whole transformer as one kernel (kernels.h, WindowPass). Its blocks have no barriers
// between a layer's parts: they hand each other tagged numbers and wait for nobody but who makes what they need. Each
// block has its outputs of each product, a few tasks of 16; their weights are in registers before the row comes.
// The sums are those of the other kernels to the bit.
#include <algorithm>

#include "model/cuda/attention.cuh"
#include "model/cuda/epilogue.cuh"
#include "model/cuda/grid.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/row_pass.cuh"
#include "model/cuda/tagged.cuh"
#include "model/cuda/window.cuh"

namespace smt::cuda {
namespace {

using namespace row_pass;  // NOLINT(google-build-using-namespace): its own parts

struct RowMemory {
  size_t pieces, attention, row, embedded, kept, ring;
  static constexpr size_t kBarriers = 8 * sizeof(uint64_t);

  RowMemory(int d, int inner, int layers, size_t of_attention) {
    pieces = static_cast<size_t>(MostTasks(kFc, d / (16 * kChunks))) * sizeof(TaskSums);
    attention = of_attention;
    row = (static_cast<size_t>(inner) * 2 + 15) / 16 * 16;
    embedded = static_cast<size_t>(d) * 4;
    kept = KeptBytes<BlockWeights>(layers);
    const size_t taken = pieces + attention + row + embedded + kBarriers + kept;
    ring = taken < kMaxBlockMemory ? (kMaxBlockMemory - taken) / 16 * 16 : 0;
  }
  size_t bytes() const { return pieces + attention + row + embedded + ring + kBarriers + kept; }
};

template <int kWidth, typename E>
constexpr size_t kAttentionBytes = GroupAttention<kWidth>::kShared + (kWidth * sizeof(E) + 15) / 16 * 16;

// kSteps, kInnerSteps: of 16 that a warp's piece of a row of d and of inner numbers has.
template <int kSteps, int kInnerSteps, int kWidth, typename E>
__global__ void __launch_bounds__(kFewRowsThreads, 1)
    RowPassKernel(const __grid_constant__ WindowPass pass, const __grid_constant__ RowPlan plan,
                  const __grid_constant__ RowMemory memory, uint32_t*, uint32_t) {
  constexpr int kD = kSteps * 16 * kChunks, kInner = kInnerSteps * 16 * kChunks;
  using A = GroupAttention<kWidth>;
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ float norm_sums[2][kNormParts];
  std::byte* free = shared;
  const auto take = [&](size_t bytes) {
    std::byte* const taken = free;
    free += bytes;
    return taken;
  };
  auto* const pieces = reinterpret_cast<TaskSums*>(take(memory.pieces));  // of tasks
  std::byte* const attention = take(memory.attention);
  auto* const row = reinterpret_cast<E*>(take(memory.row));
  auto* const embedded = reinterpret_cast<float*>(take(memory.embedded));
  std::byte* const ring_memory = take(memory.ring);
  auto* const full = reinterpret_cast<uint64_t*>(take(RowMemory::kBarriers));
  const BlockWeights* const blocks = Keep(pass.blocks, pass.layers, free);
  __syncthreads();
  const auto tasks_at = [&](int index) -> RowTasks {
    const int part = index % kParts, first = plan.FirstTask(part);
    return {index < kParts * pass.layers ? &blocks[index / kParts].qkv + part : nullptr, first, plan.TaskCount(part)};
  };
  RowRing<decltype(tasks_at)> ring(ring_memory, static_cast<uint32_t>(memory.ring), full, tasks_at);
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);
  ring.Bring();
  const RowExchange exchange(pass.exchange, kD);
  const int head = static_cast<int>(blockIdx.x) - plan.first_head;
  const bool attends = head >= 0 && head < pass.heads;
  const int column = 4 * static_cast<int>(threadIdx.x), own_column = column < kD ? column : 0;

  if (pass.embedding_type == Type::kBfloat16) {
    EmbedRow(pass.rows[0], pass.slots, pass.rings, static_cast<const __nv_bfloat16*>(pass.embeddings),
             pass.ld_embeddings, pass.positions, kD, pass.cache.type, embedded);
  } else {
    EmbedRow(pass.rows[0], pass.slots, pass.rings, static_cast<const float*>(pass.embeddings), pass.ld_embeddings,
             pass.positions, kD, pass.cache.type, embedded);
  }

  // What the cache has of the block's head, a layer ahead.
  auto* const keys = reinterpret_cast<E*>(attention);
  auto* const values = keys + kMaxGroupKeys * A::kStride;
  auto* const query_row = reinterpret_cast<E*>(attention + A::kShared);
  const Group group = pass.groups[0];
  const int64_t to_values = static_cast<int64_t>(pass.cache.window) * kD;
  const auto in_cache = [&](int layer, int key) {
    const int at = key < group.memory_valid ? key : pass.n + key - group.memory_valid;
    return static_cast<E*>(pass.cache.base) + group.slot * pass.cache.slot_stride + layer * pass.cache.layer_stride +
           head * kWidth + static_cast<int64_t>(at) * kD;
  };
  constexpr int kOfKey = kWidth / 8;  // chunks of 16 bytes
  const auto load_cached = [&](int layer) {
    for (int at = threadIdx.x; at < group.first_key * kOfKey; at += kFewRowsThreads) {
      const int key = at / kOfKey, c = at % kOfKey * 8;
      const E* const from = in_cache(layer, key) + c;
      CopyAsync(keys + key * A::kStride + c, from);
      CopyAsync(values + key * A::kStride + c, from + to_values);
    }
    asm volatile("cp.async.commit_group;");
  };
  if (attends) {
    for (int at = group.first_key * kOfKey + static_cast<int>(threadIdx.x); at < kMaxGroupKeys * kOfKey;
         at += kFewRowsThreads) {
      const int to = at / kOfKey * A::kStride + at % kOfKey * 8;
      *reinterpret_cast<uint4*>(keys + to) = *reinterpret_cast<uint4*>(values + to) = {0, 0, 0, 0};
    }
    load_cached(0);
  }
  __syncthreads();

  // The row after a part, normalized, into `row`. from: null for the embedding.
  const auto normalize = [&](const TaggedWord* from, uint32_t tag, const Norm& norm, auto* to) {
    const Four w = *reinterpret_cast<const Four*>(norm.weight + own_column);
    const Four b = norm.bias != nullptr ? *reinterpret_cast<const Four*>(norm.bias + own_column) : Four{};
    Four v;
    if (from == nullptr) {
      v = *reinterpret_cast<const Four*>(embedded + own_column);
    } else {
      // Neighbouring lanes ask for neighbouring words, of the first half of the warp's columns, then of the second.
      const TaggedWord* const own = from + (warp * 128 < kD ? warp * 128 : 0);
      TaggedWord words[2][2];
#pragma unroll 1
      for (;;) {
        LoadTagged(own + 2 * lane, words[0][0], words[0][1]);
        LoadTagged(own + 2 * lane + 64, words[1][0], words[1][1]);
        if (__all_sync(kAllLanes, HasTag(words[0][0], tag) && HasTag(words[0][1], tag) && HasTag(words[1][0], tag) &&
                                      HasTag(words[1][1], tag))) {
          break;
        }
      }
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const float first = __shfl_sync(kAllLanes, NumberOf(words[0][u % 2]), 2 * lane + u / 2);
        const float second = __shfl_sync(kAllLanes, NumberOf(words[1][u % 2]), 2 * lane + u / 2);
        v.at[u] = lane < kWarp / 2 ? first : second;
      }
    }
    NormalizeTogether(v, column < kD, kD, w, b, norm.bias != nullptr, pass.epsilon, norm_sums, to);
  };
  // kPairs pairs that others made.
  const auto await_pairs = [&](const TaggedWord* from, auto pairs, uint32_t tag) {
    constexpr int kPairs = decltype(pairs)::value, kEach = DivideUp(kPairs / 2, kFewRowsThreads);
    TaggedWord words[kEach][2];
#pragma unroll 1
    for (;;) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = 2 * (static_cast<int>(threadIdx.x) + i * kFewRowsThreads);
        LoadTagged(from + (at < kPairs ? at : 0), words[i][0], words[i][1]);
      }
      bool waiting = false;
#pragma unroll
      for (int i = 0; i < kEach; ++i) waiting |= !HasTag(words[i][0], tag) || !HasTag(words[i][1], tag);
      if (!__any_sync(kAllLanes, waiting)) break;
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = 2 * (static_cast<int>(threadIdx.x) + i * kFewRowsThreads);
      if (at < kPairs) {
        *reinterpret_cast<uint2*>(row + 2 * at) = {static_cast<uint32_t>(words[i][0]),
                                                   static_cast<uint32_t>(words[i][1])};
      }
    }
  };

  float residual = 0;  // of the output that this thread adds to the row
  // This block's tasks of a product: await() puts the row there, put(output, sum + bias, whether it is one) is called
  // by the first warps, in all lanes.
  const auto product = [&](int part, int layer, auto tasks, auto steps, auto await, auto put) {
    constexpr int kTasks = decltype(tasks)::value, kOwnSteps = decltype(steps)::value;
    const Linear& linear = (&blocks[layer].qkv)[part];
    const int first = plan.FirstTask(part), count = plan.TaskCount(part);
    if (count <= 0) return;
    HeldWeights<kOwnSteps, E> weights[kTasks];
#pragma unroll
    for (int task = 0; task < kTasks; ++task) {
      if (task < count) {
        weights[task].Load(reinterpret_cast<const E*>(ring.Await(linear)), linear.k + kRingPad);
        ring.Done();
      }
    }
    const int thread = static_cast<int>(threadIdx.x), output = first * kTaskOutputs + thread;
    const bool has = thread < count * kTaskOutputs;
    const float bias = has && linear.bias != nullptr ? linear.bias[output] : 0.0f;
    await();
    __syncthreads();
    float sum[kTasks][4] = {};
    Multiply(weights, row, sum);
    if (lane % 4 == 0) {
#pragma unroll
      for (int task = 0; task < kTasks; ++task) {
        pieces[task][warp][lane / 4] = sum[task][0];
        pieces[task][warp][lane / 4 + 8] = sum[task][2];
      }
    }
    __syncthreads();
    if (warp < DivideUp(kTasks * kTaskOutputs, kWarp)) {
      const TaskSums& own = pieces[min(thread / kTaskOutputs, kTasks - 1)];
      float total = 0;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) total += own[c][thread % kTaskOutputs];
      put(output, linear.bias != nullptr ? total + bias : total, has);
    }
    ring.Bring();
  };
  const auto put_pair = [&](TaggedWord* to, int output, float value, bool has, uint32_t tag) {
    const float next = __shfl_down_sync(kAllLanes, value, 1);
    if (has && output % 2 == 0) PutTagged(to + output / 2, PackPair<E>(value, next), tag);
  };
  using One = std::integral_constant<int, 1>;
  using QkvTasks = std::integral_constant<int, MostTasks(kQkv, kSteps)>;
  using FcTasks = std::integral_constant<int, MostTasks(kFc, kSteps)>;
  using Steps = std::integral_constant<int, kSteps>;
  using InnerSteps = std::integral_constant<int, kInnerSteps>;
  if (static_cast<int>(threadIdx.x) < plan.TaskCount(kProj) * kTaskOutputs) {
    residual = embedded[plan.FirstTask(kProj) * kTaskOutputs + static_cast<int>(threadIdx.x)];
  }

#pragma unroll 1
  for (int layer = 0; layer < pass.layers; ++layer) {
    const BlockWeights& block = blocks[layer];
    const uint32_t tag = pass.tag + static_cast<uint32_t>(layer);
    product(
        kQkv, layer, QkvTasks(), Steps(),
        [&] { normalize(layer == 0 ? nullptr : exchange.x, tag - 1, block.norm_1, row); },
        [&](int output, float value, bool has) { put_pair(exchange.qkv, output, value, has, tag); });
    if (attends) {
      if (threadIdx.x < 3 * kWidth / 2) {
        const int of = static_cast<int>(threadIdx.x) / (kWidth / 2), c = threadIdx.x % (kWidth / 2);
        const TaggedWord* const from = exchange.qkv + (of * kD + head * kWidth) / 2 + c;
        TaggedWord word;
        do {
          word = LoadTagged(from);
        } while (!HasTag(word, tag));
        E* const to = of == 0 ? query_row : (of == 1 ? keys : values) + group.first_key * A::kStride;
        reinterpret_cast<uint32_t*>(to)[c] = static_cast<uint32_t>(word);
      }
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      __syncthreads();
      const GroupAttentionCall<E> call = {.cache = pass.cache,
                                          .layer = layer,
                                          .n = pass.n,
                                          .qkv = query_row,
                                          .ld = 0,
                                          .scale = pass.scale,
                                          .keep_tokens = pass.keep_tokens,
                                          .only_last = false,
                                          .out = nullptr,
                                          .ld_out = 0};
      const GroupTile<kWidth, E> tile(call, group, 0, 0, 0);
      uint32_t query[A::kSteps][4];
      tile.LoadQuery(query);
      tile.template AttendTogether<true>(keys, values, query,
                                         reinterpret_cast<std::byte*>(values + kMaxGroupKeys * A::kStride),
                                         [&](int, int channel, uint32_t pair) {
                                           PutTagged(exchange.attended + (head * kWidth + channel) / 2, pair, tag);
                                         });
      if (threadIdx.x < 2 * kOfKey && (pass.keep_tokens || group.first_key < group.memory_valid)) {
        const int c = threadIdx.x % kOfKey * 8;
        const bool value = threadIdx.x >= kOfKey;
        *reinterpret_cast<uint4*>(in_cache(layer, group.first_key) + (value ? to_values : 0) + c) =
            *reinterpret_cast<const uint4*>((value ? values : keys) + group.first_key * A::kStride + c);
      }
      __syncthreads();
      if (layer + 1 < pass.layers) load_cached(layer + 1);
    }
    product(
        kProj, layer, One(), Steps(),
        [&] { await_pairs(exchange.attended, std::integral_constant<int, kD / 2>(), tag); },
        [&](int output, float value, bool has) {
          residual = value + residual;
          if (has) PutTagged(exchange.x_between + output, residual, tag);
        });
    product(
        kFc, layer, FcTasks(), Steps(), [&] { normalize(exchange.x_between, tag, block.norm_2, row); },
        [&](int output, float value, bool has) {
          put_pair(exchange.inner, output, Activate(pass.activation, value), has, tag);
        });
    product(
        kMlpProj, layer, One(), InnerSteps(),
        [&] { await_pairs(exchange.inner, std::integral_constant<int, kInner / 2>(), tag); },
        [&](int output, float value, bool has) {
          residual = value + residual;
          if (has) PutTagged(exchange.x + output, residual, tag);
        });
  }
  if (head != 0) return;
  normalize(exchange.x, pass.tag + static_cast<uint32_t>(pass.layers) - 1, pass.norm_f,
            static_cast<E*>(pass.outputs) + pass.to_slots[0] * pass.ld);
}

template <int kSteps, int kWidth, typename E>
void Launch(const WindowPass& pass, Arrivals* arrivals, int blocks, cudaStream_t stream) {
  constexpr int kD = kSteps * 16 * kChunks;
  const RowMemory memory(kD, 4 * kD, pass.layers, kAttentionBytes<kWidth, E>);
  LaunchOnAll(RowPassKernel<kSteps, 4 * kSteps, kWidth, E>, memory.bytes(), arrivals, 0, blocks, stream, pass,
              RowPlan(kD, 4 * kD, pass.heads, blocks), memory);
}

// with(steps of a warp's piece, width of a head) where they are usual ones: of models 256, 768 and 1,024 wide.
template <typename With>
bool ForUsualShapes(int d, int heads, With with) {
  using std::integral_constant;
  if (d % heads != 0) return false;
  const int width = d / heads;
  if (d == 256 && width == 32) return with(integral_constant<int, 2>(), integral_constant<int, 32>());
  if (d == 768 && width == 64) return with(integral_constant<int, 6>(), integral_constant<int, 64>());
  if (d == 1024 && width == 64) return with(integral_constant<int, 8>(), integral_constant<int, 64>());
  return false;
}

}  // namespace

bool CanRunRowPass(const Cache& cache, int heads, int inner, int layers, int blocks) {
  if (!CanLaunchOnAll() || !IsShort(cache.type) || inner != 4 * cache.d) return false;
  return ForUsualShapes(cache.d, heads, [&](auto, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const RowMemory memory(cache.d, inner, layers, kAttentionBytes<kWidth, __half>);
    return RowPlan(cache.d, inner, heads, blocks).Fits(blocks, heads) && TaskBytes(cache.type, inner) <= memory.ring;
  });
}

size_t RowPassExchangeBytes(int d, int inner) { return RowExchange::Words(d, inner) * sizeof(TaggedWord); }

void RunRowPass(const WindowPass& pass, Arrivals* arrivals, int blocks, cudaStream_t stream) {
  ForUsualShapes(pass.cache.d, pass.heads, [&](auto steps, auto width) {
    constexpr int kSteps = decltype(steps)::value, kWidth = decltype(width)::value;
    if (pass.cache.type == Type::kFloat16) {
      Launch<kSteps, kWidth, __half>(pass, arrivals, blocks, stream);
    } else {
      Launch<kSteps, kWidth, __nv_bfloat16>(pass, arrivals, blocks, stream);
    }
    return true;
  });
}

}  // namespace smt::cuda
