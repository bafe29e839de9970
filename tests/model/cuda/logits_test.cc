// The kernels around a draw against the host's sampler, bit for bit. Skipped where there is no GPU.
#include "model/cuda/logits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "model/cuda/kernels.h"
#include "model/sampling/adjust_logits.h"
#include "model/sampling/edit_plan.h"
#include "model/sampling/logprobs.h"
#include "model/sampling/sampler.h"
#include "tests/model/cuda/on_device.h"
#include "tests/model/sampling/random_requests.h"

namespace smt {
namespace cuda {
namespace {

class CudaLogitsTest : public OnGpu<testing::Test> {};

struct Rows {
  int count, vocab;
  std::vector<float> values;  // [count, ld]

  int64_t ld() const { return vocab + 3; }
  std::span<float> at(int row) { return std::span(values).subspan(static_cast<size_t>(row * ld())).first(vocab); }
};

Rows NewRows(int count, int vocab) {
  Rows rows{count, vocab, {}};
  rows.values.assign(static_cast<size_t>(count * rows.ld()), NAN);
  return rows;
}

Rows RandomRows(int count, int vocab, uint32_t seed) {
  Rows rows = NewRows(count, vocab);
  std::mt19937 random(seed);
  for (int row = 0; row < count; ++row) {
    std::normal_distribution<float> normal(0, row % 3 == 0 ? 0.5f : 6.0f);
    for (float& l : rows.at(row)) l = row % 4 == 1 ? std::round(normal(random)) : normal(random);  // ties
    if (row % 5 == 2) {
      for (int i = 0; i < 30; ++i) rows.at(row)[random() % static_cast<uint32_t>(vocab)] = i % 2 ? NAN : -INFINITY;
    }
    if (row % 11 == 7) std::fill(rows.at(row).begin(), rows.at(row).end(), row % 2 ? NAN : -INFINITY);
    if (row % 11 == 8) rows.at(row)[static_cast<size_t>(vocab / 2)] = INFINITY;
    if (row % 11 == 9) {  // one id has all the probability, and its logit is -0
      std::fill(rows.at(row).begin(), rows.at(row).end(), -500.0f);
      rows.at(row)[static_cast<size_t>(vocab / 3)] = -0.0f;
    }
  }
  return rows;
}

void ExpectTop(const RowLogprobs& got, const TokenLogprobs& want, const std::string& where) {
  for (size_t k = 0; k < kMaxTopLogprobs; ++k) {
    const bool there = k < want.top.size();
    ASSERT_EQ(got.ids[k], there ? want.top[k].first : -1) << where << ", alternative " << k;
    ASSERT_EQ(std::bit_cast<uint32_t>(got.logprobs[k]), std::bit_cast<uint32_t>(there ? want.top[k].second : -INFINITY))
        << where << ", alternative " << k;
  }
}

void ExpectHostLogprobs(Rows rows) {
  std::vector<LogprobAsk> asks;
  std::vector<int32_t> ids;
  for (int row = 0; row < rows.count; ++row) {
    if (row % 7 == 3) asks.push_back({.row = -1});
    asks.push_back({.row = rows.count - 1 - row, .top = row == 0 ? kMaxTopLogprobs : row % (kMaxTopLogprobs + 1)});
    ids.push_back(row % 9 == 4 ? -1 : row * 7919 % rows.vocab);
  }
  const OnDevice<float> logits(rows.values);
  const OnDevice<LogprobAsk> device_asks(asks);
  const OnDevice<int32_t> device_ids(ids);
  const OnDevice<RowLogprobs> out(std::vector<RowLogprobs>(asks.size()));
  const auto count = static_cast<int>(asks.size());
  ReadLogprobs(logits.get(), rows.ld(), device_asks.get(), count, rows.vocab, out.get(), nullptr);
  GatherLogprobs(logits.get(), rows.ld(), device_asks.get(), count, nullptr, nullptr, device_ids.get(), out.get(),
                 nullptr);
  const std::vector<RowLogprobs> got = out.Fetch();
  for (size_t i = 0; i < asks.size(); ++i) {
    if (asks[i].row < 0) continue;
    TokenLogprobs want;
    ComputeLogprobs(rows.at(asks[i].row), ids[static_cast<size_t>(asks[i].row)], asks[i].top, &want);
    const std::string where =
        "row " + std::to_string(asks[i].row) + " of " + std::to_string(rows.count) + " x " + std::to_string(rows.vocab);
    ExpectTop(got[i], want, where);
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i].logprob), std::bit_cast<uint32_t>(want.logprob)) << where;
  }
}

TEST_F(CudaLogitsTest, LogprobsAreTheHostsBitForBit) {
  uint32_t seed = 1;
  for (const int vocab : {1, 5, 19, 33, 1000, 1024, 4097, 32000, 50257, 128256, 262144}) {
    for (const int rows : {1, 2, 5, 16, 17, 40, 70}) ExpectHostLogprobs(RandomRows(rows, vocab, seed++));
  }
  ExpectHostLogprobs(RandomRows(256, 50257, seed));
}

TEST_F(CudaLogitsTest, TheLikeliestAreFoundWhereFewThreadsHaveThemAll) {
  Rows rows = NewRows(3, 8 * 72 * 1024);
  std::mt19937 random(2);
  std::uniform_real_distribution<float> uniform(0, 1);
  for (int row = 0; row < rows.count; ++row) {
    for (size_t i = 0; i < static_cast<size_t>(rows.vocab); ++i) {
      rows.at(row)[i] = uniform(random) + (i % 1024 < 20 ? 5.0f : 0.0f);
    }
  }
  ExpectHostLogprobs(rows);
}

// A batch of requests in the middle of their work, the last id of some known to the device alone.
struct Batch {
  Rows rows;
  std::vector<Request> requests;
  std::vector<bool> unknown;
  std::vector<int32_t> drawn;  // by the step before
  EditPlan plan;
  std::vector<int32_t> edits_of;  // row -> plan.rows(), or -1

  Batch(int count, int vocab, uint32_t seed) : rows(NewRows(count, vocab)), plan(vocab) {
    RandomRequests random(seed);
    for (int32_t row = 0; row < count; ++row) {
      const std::vector<float> logits = random.Logits(static_cast<size_t>(vocab));
      std::copy(logits.begin(), logits.end(), rows.at(row).begin());
      requests.push_back(random.Next(static_cast<size_t>(vocab), true));
      requests.back().params.top_logprobs = row % 3 == 0 ? -1 : row * 5 % (kMaxTopLogprobs + 1);
      unknown.push_back(random.Pick(0, 1) != 0);
      drawn.push_back(requests.back().generated.back());
      const PenaltyState known = requests.back().Penalties(unknown.back() ? 1 : 0);
      const auto next = static_cast<int32_t>(plan.rows().size());
      edits_of.push_back(plan.Add(row, requests.back().params, known, unknown.back() ? row : -1) ? next : -1);
    }
  }
};

TEST_F(CudaLogitsTest, EditsGiveTheBitsThatTheSamplerWorksWith) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    Batch batch(50, seed % 2 ? 40 : 3000, seed);
    std::vector<RowEdits> with_padding(batch.plan.rows().begin(), batch.plan.rows().end());
    with_padding.insert(with_padding.begin(), RowEdits());
    const OnDevice<float> logits(batch.rows.values);
    const OnDevice<RowEdits> rows(with_padding);
    const OnDevice<LogitEdit> edits(batch.plan.edits());
    const OnDevice<int32_t> drawn(batch.drawn);
    const OnDevice<EditedFrom> from(std::vector<EditedFrom>(batch.plan.edits().size()));
    EditLogits(logits.get(), batch.rows.ld(), rows.get(), static_cast<int>(with_padding.size()), edits.get(),
               drawn.get(), batch.rows.vocab, from.get(), nullptr);
    Rows got{batch.rows.count, batch.rows.vocab, logits.Fetch()};
    Rows restored = got;
    const std::vector<EditedFrom> before = from.Fetch();
    for (const RowEdits& row : batch.plan.rows()) {
      for (int32_t i = row.first; i < row.first + row.count; ++i) {
        const EditedFrom& edited = before[static_cast<size_t>(i)];
        if (edited.id >= 0) restored.at(row.row)[static_cast<size_t>(edited.id)] = edited.logit;
      }
    }
    for (int32_t row = 0; row < batch.rows.count; ++row) {
      EXPECT_EQ(BitsOf(restored.at(row)), BitsOf(batch.rows.at(row)));
      const Request& request = batch.requests[static_cast<size_t>(row)];
      AdjustLogits(request.params, request.Penalties(), batch.rows.at(row));
      for (int32_t id = 0; id < batch.rows.vocab; ++id) {
        const float want = batch.rows.at(row)[static_cast<size_t>(id)], is = got.at(row)[static_cast<size_t>(id)];
        if (std::isnan(want) && std::isnan(is)) continue;  // of which sign and payload is up to the processor
        ASSERT_EQ(std::bit_cast<uint32_t>(is), std::bit_cast<uint32_t>(want)) << "row " << row << ", id " << id;
      }
    }
  }
}

TEST_F(CudaLogitsTest, AnIdOutsideOfTheVocabularyEditsNothing) {
  EditPlan plan(4);
  const SamplingParams params{.repetition_penalty = 2};
  for (int32_t row = 0; row < 3; ++row) ASSERT_TRUE(plan.Add(row, params, PenaltyState(), row));
  const std::vector<float> values(12, 1.0f);
  const OnDevice<float> logits(values);
  const OnDevice<RowEdits> rows(plan.rows());
  const OnDevice<LogitEdit> edits(plan.edits());
  const OnDevice<int32_t> drawn(std::vector<int32_t>{-1, 4, 1 << 30});
  EditLogits(logits.get(), 4, rows.get(), 3, edits.get(), drawn.get(), 4, nullptr, nullptr);
  EXPECT_EQ(logits.Fetch(), values);
}

// What a step queues and what it works on.
class Step {
 public:
  explicit Step(Batch* batch)
      : batch_(batch),
        logits_(batch->rows.values),
        rows_(batch->plan.rows()),
        edits_(batch->plan.edits()),
        from_(std::vector<EditedFrom>(batch->plan.edits().size())),
        ids_(batch->drawn),
        last_(std::vector<int32_t>(static_cast<size_t>(batch->rows.count))),
        asks_(Asks(*batch)),
        out_(std::vector<RowLogprobs>(static_cast<size_t>(batch->rows.count))),
        draws_(Draws(*batch)) {}

  static int64_t PositionOf(int row) { return 1000 + row; }
  void Queue(cudaStream_t stream) const {
    const int count = batch_->rows.count, vocab = batch_->rows.vocab;
    const int64_t ld = batch_->rows.ld();
    ReadLogprobs(logits_.get(), ld, asks_.get(), count, vocab, out_.get(), stream);
    EditLogits(logits_.get(), ld, rows_.get(), static_cast<int>(batch_->plan.rows().size()), edits_.get(), ids_.get(),
               vocab, from_.get(), stream);
    DrawIds(logits_.get(), ld, draws_.get(), count, vocab, ids_.get(), last_.get(), stream);
    GatherLogprobs(logits_.get(), ld, asks_.get(), count, rows_.get(), from_.get(), ids_.get(), out_.get(), stream);
  }
  void ExpectTheSamplers() const {
    const std::vector<int32_t> ids = ids_.Fetch();
    EXPECT_EQ(last_.Fetch(), ids);
    const std::vector<RowLogprobs> out = out_.Fetch();
    Sampler sampler(batch_->rows.vocab);
    for (int row = 0; row < batch_->rows.count; ++row) {
      const auto at = static_cast<size_t>(row);
      const Request& request = batch_->requests[at];
      SampledToken want;
      if (!sampler.Sample(batch_->rows.at(row), request.params, request.Penalties(), PositionOf(row), &want).ok()) {
        EXPECT_EQ(ids[at], -1);
        continue;
      }
      ASSERT_EQ(ids[at], want.id) << "row " << row;
      if (request.params.top_logprobs < 0) continue;
      ExpectTop(out[at], want.logprobs, "row " + std::to_string(row));
      ASSERT_EQ(std::bit_cast<uint32_t>(out[at].logprob), std::bit_cast<uint32_t>(want.logprobs.logprob))
          << "row " << row;
    }
  }

 private:
  static std::vector<LogprobAsk> Asks(const Batch& batch) {
    std::vector<LogprobAsk> asks;
    for (int32_t row = 0; row < batch.rows.count; ++row) {
      const int32_t top = batch.requests[static_cast<size_t>(row)].params.top_logprobs;
      asks.push_back({.row = top < 0 ? -1 : row, .top = top, .edits = batch.edits_of[static_cast<size_t>(row)]});
    }
    return asks;
  }
  static std::vector<Draw> Draws(const Batch& batch) {
    std::vector<Draw> draws;
    for (int row = 0; row < batch.rows.count; ++row) {
      const SamplingParams& p = batch.requests[static_cast<size_t>(row)].params;
      draws.push_back({p.temperature, p.top_p, p.min_p, p.top_k, row, p.seed, PositionOf(row)});
    }
    return draws;
  }

  Batch* const batch_;
  const OnDevice<float> logits_;
  const OnDevice<RowEdits> rows_;
  const OnDevice<LogitEdit> edits_;
  const OnDevice<EditedFrom> from_;
  const OnDevice<int32_t> ids_, last_;
  const OnDevice<LogprobAsk> asks_;
  const OnDevice<RowLogprobs> out_;
  const OnDevice<Draw> draws_;
};

TEST_F(CudaLogitsTest, AStepDrawsAndReportsWhatTheSamplerDoes) {
  for (uint32_t seed = 100; seed < 130; ++seed) {
    Batch batch(seed % 3 ? 9 : 80, seed % 2 ? 300 : 50257, seed);
    const Step step(&batch);
    step.Queue(nullptr);
    step.ExpectTheSamplers();
  }
}

TEST_F(CudaLogitsTest, AStepCanBeCaptured) {
  Batch batch(20, 50257, 7);
  const Step step(&batch);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CheckCuda(cudaStreamCreate(&stream), "creating a stream");
  Step(&batch).Queue(stream);  // loads the kernels
  CheckCuda(cudaStreamSynchronize(stream), "running");
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capturing");
  step.Queue(stream);
  CheckCuda(cudaStreamEndCapture(stream, &graph), "capturing");
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0), "instantiating");
  CheckCuda(cudaGraphLaunch(executable, stream), "launching");
  step.ExpectTheSamplers();
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace cuda
}  // namespace smt
