// One or two writes through pooling and Mamba as one kernel (kernels.h, WritePassCall). Between the layers' parts
// its blocks hand each other tagged numbers and do not wait for anybody but who makes what they need: half of in_proj's
// outputs, the gates, are made while x_proj, of few outputs, is on its way.
#include <algorithm>
#include <type_traits>

#include "model/cuda/epilogue.cuh"
#include "model/cuda/grid.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/memory.cuh"
#include "model/cuda/tagged.cuh"
#include "model/cuda/write_pass.cuh"

namespace smt::cuda {
namespace {

// A layer's products in order; before them, two of pooling.
enum Part { kInputs, kGates, kParameters, kScan, kOut, kParts, kQuery = kParts, kKey };
constexpr int kOfPooling = 2;

// Rows that blocks hand to each other, [kMaxFewWrites, ...]. That no place is written again too early:
// - x after a layer: its writers have all of the layer's scanned rows, so that all scans are done, which need all gates
//   and, by the parameters, all inputs, and who made those has read x.
// - the others: their writers, a layer later, have all of x, whose makers had all that was scanned.
struct Exchange {
  TaggedWord *x, *convolved, *gates, *parameters, *scanned;

  __host__ __device__ Exchange(const WritePassCall& pass)
      : x(pass.exchange),
        convolved(x + kMaxFewWrites * pass.ld),
        gates(convolved + kMaxFewWrites * pass.ld_inner),
        parameters(gates + kMaxFewWrites * pass.ld_inner),
        scanned(parameters + kMaxFewWrites * pass.ld_parameters) {}
  static size_t Words(const WritePassCall& pass) {
    return static_cast<size_t>(kMaxFewWrites * (pass.ld + 3 * pass.ld_inner + pass.ld_parameters));
  }
};

constexpr int kStates = 16, kTaps = 4;  // of a channel: the usual shape, the one that this kernel serves

struct FewWritesMemory {
  size_t normed, rows, parameters, scan, ring, kept;
  static constexpr size_t kPieces = sizeof(PieceSums<1>), kBarriers = 8 * sizeof(uint64_t);
  // Of a row: of the scan delta, input and next states of 16 channels; of the norm the sums of eight warps.
  static constexpr int kOfScan = 2 * 16 + 16 * (kStates + 1);

  FewWritesMemory(const WritePassCall& pass, int count) {
    const auto words = [](int64_t n) { return static_cast<size_t>((n + 3) / 4 * 16); };
    const int64_t k = std::max({pass.ld, pass.ld_inner, pass.ld_parameters});
    normed = words(count * (pass.ld + kSplitPad));
    rows = words(std::max<int64_t>(count * (k + kSplitPad), pass.pooling.n + pass.pooling.m));
    parameters = words(count * pass.ld_parameters);
    scan = words(int64_t{count} * kOfScan);
    kept = KeptBytes<MambaWeights>(pass.layer_count) + KeptBytes<Write>(kMaxFewWrites) +
           KeptBytes<Linear>(kOfPooling + kParts * pass.layer_count);
    const size_t taken = kPieces + normed + rows + parameters + scan + kBarriers + kept;
    ring = taken < kMaxBlockMemory ? (kMaxBlockMemory - taken) / 16 * 16 : 0;
  }
  size_t bytes() const { return kPieces + normed + rows + parameters + scan + ring + kBarriers + kept; }
};

// Calls with(steps) where a warp's piece has a usual number of steps of 16, whose weights are in registers ahead of the
// rows.
constexpr int kMostSteps = 12;
template <typename With>
__device__ __forceinline__ bool ForUsualSteps(int steps, With with) {
  if (steps == 1) with(std::integral_constant<int, 1>());
  if (steps == 6) with(std::integral_constant<int, 6>());
  if (steps == kMostSteps) with(std::integral_constant<int, kMostSteps>());
  return steps == 1 || steps == 6 || steps == kMostSteps;
}

// kCount: `pooling.count`.
template <int kCount, typename Embedding>
__global__ void __launch_bounds__(kFewRowsThreads, 1)
    FewWritesKernel(const __grid_constant__ WritePassCall pass, const __grid_constant__ FewWritesMemory memory,
                    uint32_t* arrived, uint32_t base) {
  extern __shared__ __align__(16) std::byte shared[];
  // Of this block, of the products' tasks.
  __shared__ int first_task[kParts + kOfPooling], task_step[kParts + kOfPooling];
  auto& pieces = *reinterpret_cast<PieceSums<1>*>(shared);
  std::byte* free = shared + FewWritesMemory::kPieces;
  const auto take = [&](size_t bytes) {
    std::byte* const taken = free;
    free += bytes;
    return taken;
  };
  const int d = pass.pooling.d;
  const int ld_normed = static_cast<int>(pass.ld) + kSplitPad;
  const SplitStage normed = {reinterpret_cast<__nv_bfloat16*>(take(memory.normed)), kCount * ld_normed, ld_normed};
  auto* const rows = reinterpret_cast<__nv_bfloat16*>(take(memory.rows));
  auto* const parameters = reinterpret_cast<float*>(take(memory.parameters));
  auto* const scan = reinterpret_cast<float*>(take(memory.scan));
  std::byte* const ring_memory = take(memory.ring);
  auto* const full = reinterpret_cast<uint64_t*>(take(FewWritesMemory::kBarriers));
  const MambaWeights* const layers = Keep(pass.layers, pass.layer_count, free);
  Pooling p = pass.pooling;
  p.writes = Keep(p.writes, p.count, free);
  auto* const products = reinterpret_cast<Linear*>(free);
  __syncthreads();
  const MambaShape& shape = pass.shape;
  const int product_count = kOfPooling + kParts * pass.layer_count;
#pragma unroll 1
  for (int index = threadIdx.x; index < product_count; index += kFewRowsThreads) {
    Linear& linear = products[index];
    if (index < kOfPooling) {
      linear = index == 0 ? pass.query : pass.key_transposed;
      continue;
    }
    const MambaWeights& layer = layers[(index - kOfPooling) / kParts];
    const int part = (index - kOfPooling) % kParts;
    linear = part == kParameters ? layer.x_proj
             : part == kScan     ? layer.dt_proj
             : part == kOut      ? layer.out_proj
                                 : layer.in_proj;
    if (part == kInputs || part == kGates) linear.n = shape.d_inner;
    if (part == kGates) {
      linear.weight = static_cast<const __nv_bfloat16*>(linear.weight) + static_cast<int64_t>(shape.d_inner) * linear.k;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    // On 132 multiprocessors: 48 make x, and gates, which can wait, or the parameters; the others make inputs
    // and scan, of whom those without gates scan twice.
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const auto tasks = [&](int part) { return (products[kOfPooling + part].n + 15) / 16; };
    const int others = max(blocks - tasks(kOut), 1), first_input = blocks - tasks(kInputs);
#pragma unroll 1
    for (int part = 0; part < kParts + kOfPooling; ++part) {
      const int start = part == kInputs       ? first_input
                        : part == kScan       ? blocks - others
                        : part == kParameters ? first_input - tasks(kParameters)
                        : part == kGates      ? first_input - tasks(kParameters) - tasks(kGates)
                                              : 0;
      first_task[part] = ((block - start) % blocks + blocks) % blocks;
      task_step[part] = blocks;
      if (part != kScan) continue;
      if (first_task[part] >= others) first_task[part] = tasks(kScan);
      task_step[part] = others;
    }
  }
  __syncthreads();
  const auto part_of = [](int index) {
    return static_cast<Part>(index < kOfPooling ? kQuery + index : (index - kOfPooling) % kParts);
  };
  const auto task_at = [&](int index) -> GridTasks {
    if (index >= product_count) return {nullptr, 0, 1};
    return {products + index, first_task[part_of(index)], task_step[part_of(index)]};
  };
  WeightRing<decltype(task_at)> ring(ring_memory, static_cast<uint32_t>(memory.ring), full, task_at);
  GridBarrier grid(arrived, base);
  const auto wait = [&] { grid.Wait([] {}); };
  const Exchange exchange(pass);
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);

  // What scans and convolutions of a block's first task meet, and norms, loaded a layer ahead: memory that is busy with
  // weights answers late. Of a scan, which all threads share, a thread has one state of each row and 1/16 of what comes
  // after.
  const int j_of_thread = threadIdx.x / kStates, state = threadIdx.x % kStates;
  const int out_row = threadIdx.x / 16, out_j = threadIdx.x % 16;
  struct ScanAhead {
    float bias, rate, skip, states[kCount];
  };
  // The task's numbers that this thread has in the end are of one row at most.
  int own_row = kCount, own_j = 0;
  OwnElements<1>::ForEach([&](int, int, int row, int j) { own_row = row, own_j = j; });
  const bool owns = own_row < kCount;
  const int row = owns ? own_row : 0;
  const int32_t slot = p.writes[row].slot;
  const auto load_scan = [&](int layer, int task, ScanAhead& to) {
    const MambaWeights& weights = layers[layer];
    to.bias = owns ? weights.dt_proj.bias[task * 16 + own_j] : 0.0f;
    to.skip = weights.skip[task * 16 + out_j];
    to.rate = weights.a[(task * 16 + j_of_thread) * kStates + state];
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      to.states[r] = ScanChannel::State(p, shape, layer, p.writes[r].slot, task * 16 + j_of_thread)[state];
    }
  };
  const auto load_conv = [&](int layer, int task, ConvChannel& to) {
    if (!owns) return;
    to.Load(p, shape, layer, slot, task * 16 + own_j, layers[layer].conv_weight, layers[layer].conv_bias);
  };
  ScanAhead first_scan = {};
  ConvChannel first_conv = {};
  Four norm = {};
  const int norm_channel = 4 * static_cast<int>(threadIdx.x);
  const auto load_ahead = [&](int layer) {
    const bool end = layer == pass.layer_count;
    if (norm_channel < d) {
      norm = *reinterpret_cast<const Four*>((end ? pass.norm_f : layers[layer].norm) + norm_channel);
    }
    if (end) return;
    if (first_task[kInputs] * 16 < shape.d_inner) load_conv(layer, first_task[kInputs], first_conv);
    if (first_task[kScan] * 16 < shape.d_inner) load_scan(layer, first_task[kScan], first_scan);
  };

  // RMSNorm of x after `layer` layers to the bits of NormalizeRow: a warp takes 128 channels of all rows, a lane four.
  // Calls put(row, channel, four numbers); the caller synchronizes.
  const auto normalize = [&](int layer, auto put) {
    const int channel = norm_channel;
    const uint32_t tag = pass.tag + layer;
    const TaggedWord* const from = exchange.x + (channel < d ? channel : 0);
    TaggedWord words[kCount][4];
    bool waiting;
#pragma unroll 1
    do {
#pragma unroll
      for (int row = 0; row < kCount; ++row) {
        LoadTagged(from + row * pass.ld, words[row][0], words[row][1]);
        LoadTagged(from + row * pass.ld + 2, words[row][2], words[row][3]);
      }
      waiting = false;
#pragma unroll
      for (int row = 0; row < kCount; ++row) {
#pragma unroll
        for (int u = 0; u < 4; ++u) waiting |= !HasTag(words[row][u], tag);
      }
    } while (waiting);
    Four x[kCount];
#pragma unroll
    for (int row = 0; row < kCount; ++row) {
      float squares = 0;
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        x[row].at[u] = NumberOf(words[row][u]);
        squares = AddSquare(squares, x[row].at[u], 0.0f);
      }
      squares = WarpSum(channel < d ? squares : 0.0f);
      if (lane == 0) scan[row * kChunks + warp] = squares;
    }
    __syncthreads();
#pragma unroll
    for (int row = 0; row < kCount; ++row) {
      float squares = 0;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) squares += scan[row * kChunks + i];
      const float scale = NormScale(squares, d, pass.epsilon);
      if (channel < d) put(row, channel, Normalized(x[row], 0.0f, scale, norm, Four{}));
    }
  };

  // All products in one loop, what comes around them written once: the kernel has to stay in the instruction cache.
#pragma unroll 1
  for (int index = 0; index < product_count; ++index) {
    const int layer = (index - kOfPooling) / kParts;
    const Part part = part_of(index);
    const Linear& linear = products[index];
    const int first = first_task[part], step = task_step[part], k = linear.k;
    const bool any = first * 16 < linear.n;
    // Beginning copies takes about as long as they take: it is for when others are at work.
    if (warp > 0 && !any) ring.Issue();
    if (index == 0) {
      load_ahead(0);
      MeansOfWindows<Embedding>(pass, p);
      wait();
    }
    if (index == kOfPooling) {
      ScoresOfWindows<Embedding>(pass, p);
      wait();
      PoolWindows<Embedding>(pass, p, reinterpret_cast<float*>(rows), [&](int write, int i, float sum) {
        PutTagged(exchange.x + write * pass.ld + i, sum, pass.tag);
      });
    }
    const MambaWeights& weights = layers[layer];
    const uint32_t tag = pass.tag + layer;
    if (part == kOut && !any) load_ahead(layer + 1);
    const SplitStage in =
        part == kInputs || part == kGates ? normed : SplitStage{rows, kCount * (k + kSplitPad), k + kSplitPad};
    const auto rows_there = [&] {
      if (part == kGates) return;
      if (part == kInputs) {
        normalize(layer, [&](int row, int channel, const Four& y) {
          __nv_bfloat16* const to = normed.high + row * ld_normed + channel;
          StoreFour(SplitTo{to, to + normed.plane}, y);
        });
#pragma unroll 1
        for (int i = d + 2 * static_cast<int>(threadIdx.x); i < k; i += 2 * kFewRowsThreads) {
#pragma unroll 1
          for (int row = 0; row < kCount; ++row) normed.Put(row, i, {});
        }
      } else if (part >= kQuery) {
        const float* const from = part == kQuery ? pass.normed : pass.query_rows;
#pragma unroll 1
        for (int row = 0; row < kCount; ++row) {
#pragma unroll 1
          for (int i = 2 * static_cast<int>(threadIdx.x); i < k; i += 2 * kFewRowsThreads) {
            in.Put(row, i, *reinterpret_cast<const float2*>(from + row * pass.ld + i));
          }
        }
      } else {
        const bool whole = part == kScan;
        const int64_t ld = whole ? pass.ld_parameters : pass.ld_inner;
        const int columns = whole ? shape.dt_rank + 2 * shape.d_state : shape.d_inner;
        const auto put = [&](int row, int column, float2 pair) {
          if (whole) *reinterpret_cast<float2*>(parameters + row * ld + column) = pair;
          if (column < k) in.Put(row, column, pair);
        };
#pragma unroll 1
        for (int i = columns + 2 * static_cast<int>(threadIdx.x); i < ld; i += 2 * kFewRowsThreads) {
#pragma unroll 1
          for (int row = 0; row < kCount; ++row) put(row, i, {});
        }
        constexpr int kEach = kCount == 1 ? 3 : 6;
        AwaitRows<kEach>(part == kParameters ? exchange.convolved
                         : whole             ? exchange.parameters
                                             : exchange.scanned,
                         ld, kCount, columns, tag, put);
      }
      __syncthreads();
    };
    const bool own_rows = any || (part == kInputs && first_task[kGates] * 16 < shape.d_inner);
#pragma unroll 1
    for (int task = first; task * 16 < linear.n || (task == first && own_rows); task += step) {
      const int j = task * 16 + own_j;
      const bool there = task * 16 < linear.n, own = owns && j < linear.n;
      const int64_t at = row * pass.ld_inner + j, of_task = task * 16;
      ConvChannel conv = first_conv;
      ScanAhead ahead = first_scan;
      if (there && task != first) {
        if (part == kScan) load_scan(layer, task, ahead);
        if (part == kInputs) load_conv(layer, task, conv);
      }
      float sum[1][4] = {};
      const int steps = k / (16 * kChunks), first_of_piece = warp * 16 * steps;
      const __nv_bfloat16* weight = nullptr;
      HeldPiece<kMostSteps> piece;
      if (there) {
        if (warp > 0 && ring.Waiting() == 0) ring.Issue();
        weight = reinterpret_cast<const __nv_bfloat16*>(ring.Await(linear));
        ForUsualSteps(steps, [&](auto usual) {
          piece.template Load<decltype(usual)::value>(weight, k + kRingPad, first_of_piece);
        });
      }
      if (task == first) {
        if (part == kOut) load_ahead(layer + 1);
        rows_there();
      }
      if (!there) break;
      TaggedWord residual = 0, gate = 0, inputs[kCount] = {};
      const TaggedWord* const gate_at = exchange.gates + min(out_row, kCount - 1) * pass.ld_inner + of_task + out_j;
      const TaggedWord* const inputs_at = exchange.convolved + of_task + j_of_thread;
      if (part == kOut) {
        residual = LoadTagged(exchange.x + row * pass.ld + j);
      } else if (part == kScan) {
        gate = LoadTagged(gate_at);
#pragma unroll
        for (int r = 0; r < kCount; ++r) inputs[r] = LoadTagged(inputs_at + r * pass.ld_inner);
      }
      const bool done = ForUsualSteps(
          steps, [&](auto usual) { piece.template Multiply<decltype(usual)::value>(in, kCount, first_of_piece, sum); });
      if (!done) {
#pragma unroll 1
        for (int i = first_of_piece; i < first_of_piece + 16 * steps; i += 16) {
          piece.template Load<1>(weight, k + kRingPad, i);
          piece.template Multiply<1>(in, kCount, i, sum);
        }
      }
      AddPieces<1>(pieces, sum, [&](int, int, int, float total) {
        if (!own) return;
        if (part == kInputs) {
          PutTagged(exchange.convolved + at, conv.Run(p, shape, layer, slot, j, weights.conv_weight, total), tag);
        } else if (part == kParameters) {
          PutTagged(exchange.parameters + row * pass.ld_parameters + j, total, tag);
        } else if (part == kGates) {
          PutTagged(exchange.gates + at, total, tag);
        } else if (part == kOut) {
          TaggedWord* const to = exchange.x + row * pass.ld + j;
          PutTagged(to, total + AwaitTagged(residual, to, tag), tag + 1);
        } else if (part == kScan) {
          scan[row * 16 + own_j] = Activate(Activation::kSoftplus, total + ahead.bias);
        } else {
          (part == kQuery ? pass.query_rows : pass.key_rows)[row * pass.ld + j] = total;
        }
      });
      if (part == kScan) {
        float* const next = scan + 2 * kCount * 16;  // [rows, 16, kStates + 1]
        __syncthreads();
#pragma unroll
        for (int r = 0; r < kCount; ++r) {
          const float delta = scan[r * 16 + j_of_thread];
          const float x = AwaitTagged(inputs[r], inputs_at + r * pass.ld_inner, tag);
          const float h = NextState(ahead.states[r], delta, ahead.rate, ScanInput(delta, x),
                                    parameters[r * pass.ld_parameters + shape.dt_rank + state]);
          next[(r * 16 + j_of_thread) * (kStates + 1) + state] = h;
          if (state == 0) scan[(kCount + r) * 16 + j_of_thread] = x;
          ScanChannel::State(p, shape, layer, p.writes[r].slot, task * 16 + j_of_thread)[state] = h;
        }
        __syncthreads();
        if (out_row < kCount) {
          const float* const c = parameters + out_row * pass.ld_parameters + shape.dt_rank + kStates;
          const float* const h = next + threadIdx.x * (kStates + 1);
          float y = 0;
#pragma unroll
          for (int i = 0; i < kStates; ++i) y = AddState(y, h[i], c[i]);
          y = GatedOutput(y, ahead.skip, scan[kCount * 16 + threadIdx.x], AwaitTagged(gate, gate_at, tag));
          PutTagged(exchange.scanned + out_row * pass.ld_inner + of_task + out_j, y, tag);
        }
      }
      ring.Done();
      // Where a block has more tasks of one product than the ring holds.
      if (warp > 0 && ring.Waiting() * step * 16 < linear.n - (task + step) * 16) ring.Issue();
    }
    if (part >= kQuery) wait();
  }
  // What comes out, each row by as many blocks as have channels of it.
  const int parts = (d + kFewRowsThreads - 1) / kFewRowsThreads;
  if (static_cast<int>(blockIdx.x) >= kCount * parts) return;
  auto* const values = reinterpret_cast<float*>(rows);
  normalize(pass.layer_count,
            [&](int row, int channel, const Four& y) { StoreFour(values + row * pass.ld + channel, y); });
  __syncthreads();
  ForChannels(p, [&](int write, int i) {
    if (i >= d) return;
    const Write& own = p.writes[write];
    const float value = values[write * pass.ld + i];
    pass.normed[write * pass.ld + i] = value;
    PushChannel(p, own.slot, own.memory_valid, 1, i, [&](int) { return value; });
  });
}

template <int kCount>
void Launch(const WritePassCall& pass, Arrivals* arrivals, int blocks, cudaStream_t stream) {
  const FewWritesMemory memory(pass, kCount);
  const auto kernel = pass.pooling.embedding_type == Type::kBfloat16 ? FewWritesKernel<kCount, __nv_bfloat16>
                                                                     : FewWritesKernel<kCount, float>;
  LaunchOnAll(kernel, memory.bytes(), arrivals, 4, OrAllMultiprocessors(blocks), stream, pass, memory);
}

}  // namespace

size_t FewWritesExchangeBytes(const WritePassCall& pass) { return Exchange::Words(pass) * sizeof(TaggedWord); }

bool CanRunFewWrites(const WritePassCall& pass) {
  const MambaShape& shape = pass.shape;
  const int d = pass.pooling.d;
  return CanLaunchOnAll() && shape.d_inner % 16 == 0 && shape.d_state == kStates && shape.d_conv == kTaps &&
         d % 4 == 0 && d <= 4 * kWarp * kChunks && shape.dt_rank % 2 == 0 &&
         TaskBytes(Type::kSplit, std::max(pass.ld, pass.ld_inner)) <= FewWritesMemory(pass, kMaxFewWrites).ring;
}

void RunFewWrites(const WritePassCall& pass, Arrivals* arrivals, int blocks, cudaStream_t stream) {
  static_assert(kMaxFewWrites == 2);
  (pass.pooling.count == 1 ? Launch<1> : Launch<2>)(pass, arrivals, blocks, stream);
}

}  // namespace smt::cuda
