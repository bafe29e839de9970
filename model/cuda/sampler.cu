// Draws ids where the logits are, bit for bit as model/sampling/sampler.cc does on the host: weights are integers, so
// sums do not depend on their order. What top_k and top_p keep is found without sorting.
#include "model/cuda/exact_cut.cuh"
#include "model/cuda/fast_cut.cuh"
#include "model/cuda/kernels.h"
#include "model/sampling/philox.h"

namespace smt::cuda {
namespace {

template <bool kHeld, bool kCluster>
__global__ void __launch_bounds__(kDrawThreads, 2)
    DrawKernel(const float* __restrict__ logits, int64_t ld, const Draw* __restrict__ draws, int vocab, int ids_a_block,
               int32_t* __restrict__ ids, int32_t* __restrict__ last) {
  if constexpr (kCanRun<kCluster>) {
    extern __shared__ __align__(16) unsigned char memory[];
    CutShared& s = *reinterpret_cast<CutShared*>(memory);
    using Row = RowWeights<kHeld, kCluster>;
    const Blocks<kCluster> blocks;
    const int index = static_cast<int>(blockIdx.x) / blocks.count();
    Row row(s, reinterpret_cast<unsigned*>(memory + sizeof(CutShared)), logits + index * ld, vocab, ids_a_block);
    FastCut<Row> fast = {s, row};
    ExactCut<Row> exact = {s, row};
    row.Prepare(&s.octave_came, 2);
    fast.Clear();
    AwaitPrevious();
    row.Start();
    const Draw draw = draws[index];
    if (Warp() == kDrawWarps - 1) s.random = DrawBits(draw.seed, draw.position);
    __syncthreads();
    const float max = row.Max();
    const float max_scaled = draw.temperature > 0 ? max / draw.temperature : 0.0f;
    if (max == -INFINITY || !(draw.temperature > 0) || !isfinite(max_scaled)) {
      const int id = max == -INFINITY ? -1 : row.IdOfLogit(max);
      if (blocks.rank() == 0 && threadIdx.x == 0) ids[index] = last[draw.slot] = id;
      return;
    }
    row.SetScale(draw.temperature, max_scaled);
    const bool top_k = draw.top_k > 0 && draw.top_k < vocab, top_p = draw.top_p < 1.0f;
    Cut cut;
    typename Row::Shown* kept = nullptr;
    if (top_k || top_p) {
      const bool found = fast.Find(top_k ? draw.top_k : 0, draw.top_p, &cut, &kept);
      if (!found) cut = exact.Find(top_k ? draw.top_k : 0, draw.top_p, cut);
      if (top_k && top_p) cut = exact.Find(0, draw.top_p, cut);
      if (!found || (top_k && top_p)) kept = nullptr;
    } else {
      kept = &row.SumAll(row.WeighAll([](unsigned) {}));
    }
    const unsigned least = static_cast<unsigned>(::min(MinPThreshold(draw.min_p), uint64_t{kMaxWeight}));
    if (least > cut.weight) {
      cut = Cut();
      cut.weight = least;
      kept = nullptr;
    }
    const auto amount = [&](int id, unsigned weight) { return cut.Keeps(weight, id) ? WeightOf(weight) : 0; };
    if (kept == nullptr) kept = &row.SumAll(row.SumOwn(amount));
    row.Locate(
        *kept, [&](Sum all) { return ScaleRandom(s.random, all); }, amount,
        [&](int id) { ids[index] = last[draw.slot] = id; });
  }
}

}  // namespace

void DrawIds(const float* logits, int64_t ld, const Draw* draws, int rows, int vocab, int32_t* ids, int32_t* last,
             cudaStream_t stream) {
  if (rows == 0) return;
  static const bool raised = (RaiseSharedMemory(DrawKernel<true, true>, DrawKernel<true, false>), true);
  static_cast<void>(raised);
  // Clusters do not fill all multiprocessors, and a second one of a multiprocessor costs a few rows more than it gives.
  RowLaunch launch =
      LaunchOf(rows, vocab, sizeof(CutShared) + kStep * sizeof(float), TheRowDevice().processors * 3 / 4);
  launch.ids_a_block = RoundUp(launch.ids_a_block);
  launch.threads = kDrawThreads;
  const auto kernel = launch.blocks > 1 ? (launch.held ? DrawKernel<true, true> : DrawKernel<false, true>)
                                        : (launch.held ? DrawKernel<true, false> : DrawKernel<false, false>);
  LaunchRows(launch, stream, "launching the sampler", kernel, logits, ld, draws, vocab, launch.ids_a_block, ids, last);
}

}  // namespace smt::cuda
