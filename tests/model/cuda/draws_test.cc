// Draws on the device against the host's sampler. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "model/cuda/kernels.h"
#include "model/sampling/sampler.h"
#include "tests/model/cuda/on_device.h"

namespace smt::cuda {
namespace {

using CudaDrawsTest = OnGpu<testing::Test>;

constexpr int kKinds = 8;
float LogitOfKind(int kind, int id, int vocab, std::mt19937* random) {
  std::normal_distribution<float> normal(0, 1);
  const float n = normal(*random);
  const uint32_t chance = (*random)();
  switch (kind) {
    case 0:
      return 0.5f * n;  // untrained
    case 1:
      return 2.0f * n + (chance % 5000 == 0 ? 8.0f : 0.0f);  // trained
    case 2:
      return std::round(4.0f * n) / 4.0f;  // a few weights alike
    case 3:
      return chance % 3 == 0 ? -INFINITY : chance % 1001 == 1 ? NAN : 6.0f * n;
    case 4:
      return 1.25f;  // all alike
    case 5:
      return id == vocab / 3 ? -0.0f : -500.0f;
    case 6:
      return 3.0f + 1e-3f * n;  // all in a few bins
    default:
      return chance % 64 == 0 ? 5.0f : 4.0f + 0.0001f * static_cast<float>(chance % 16);
  }
}

struct Rows {
  int count, vocab;
  int64_t ld;
  std::vector<float> logits;
  std::vector<SamplingParams> params;
};
Rows RandomRows(int count, int vocab, int64_t ld, uint32_t seed) {
  std::mt19937 random(seed);
  const auto pick = [&random](auto... values) {
    const double options[] = {static_cast<double>(values)...};
    return options[random() % sizeof...(values)];
  };
  Rows rows{count, vocab, ld, std::vector<float>(static_cast<size_t>(count * ld), NAN), {}};
  for (int row = 0; row < count; ++row) {
    const auto kind = static_cast<int>((static_cast<uint32_t>(row) + seed) % kKinds);
    for (int id = 0; id < vocab; ++id) {
      rows.logits[static_cast<size_t>(row * ld + id)] = LogitOfKind(kind, id, vocab, &random);
    }
    SamplingParams params;
    params.seed = random();
    params.temperature = static_cast<float>(pick(0.8, 0.8, 1, 0.3, 2, 0, 1e-35, 1e10));
    params.top_k = static_cast<int32_t>(pick(0, 0, 0, 1, 40, 1000, 100000));
    params.top_p = static_cast<float>(pick(0.95, 0.95, 1, 0.5, 0.999, 1e-6, 0.9999999));
    params.min_p = static_cast<float>(pick(0, 0, 0, 0.05, 1));
    rows.params.push_back(params);
  }
  return rows;
}

void ExpectTheSamplers(const Rows& rows) {
  std::vector<Draw> draws;
  for (int row = 0; row < rows.count; ++row) {
    const SamplingParams& p = rows.params[static_cast<size_t>(row)];
    draws.push_back({p.temperature, p.top_p, p.min_p, p.top_k, rows.count - 1 - row, p.seed, 1000 + row});
  }
  const OnDevice<float> logits(rows.logits);
  const OnDevice<Draw> device_draws(draws);
  const std::vector<int32_t> none(draws.size(), -7);
  const OnDevice<int32_t> ids(none), last(none);
  DrawIds(logits.get(), rows.ld, device_draws.get(), rows.count, rows.vocab, ids.get(), last.get(), nullptr);
  const std::vector<int32_t> got = ids.Fetch(), got_last = last.Fetch();
  Sampler sampler(rows.vocab);
  for (int row = 0; row < rows.count; ++row) {
    const auto at = static_cast<size_t>(row);
    SampledToken want;
    const auto own = std::span(rows.logits).subspan(at * static_cast<size_t>(rows.ld), static_cast<size_t>(rows.vocab));
    const bool drawn = sampler.Sample(own, rows.params[at], PenaltyState(), 1000 + row, &want).ok();
    const std::string where =
        "row " + std::to_string(row) + " of " + std::to_string(rows.count) + " x " + std::to_string(rows.vocab);
    ASSERT_EQ(got[at], drawn ? want.id : -1) << where;
    ASSERT_EQ(got_last[draws.size() - 1 - at], got[at]) << where;
  }
}

TEST_F(CudaDrawsTest, AreTheHostsWhateverTheRowsAndTheVocabulary) {
  uint32_t seed = 1;
  for (const int vocab : {1, 2, 31, 127, 513, 4097, 8193, 32000, 50257, 128256}) {
    for (const int rows : {1, 2, 16, 17, 40, 70}) ExpectTheSamplers(RandomRows(rows, vocab, vocab + 3, seed++));
  }
}

TEST_F(CudaDrawsTest, AreTheHostsWhereRowsBeginOn16BytesAndWhereTheyDoNot) {
  for (uint32_t seed = 0; seed < kKinds; ++seed) {
    for (const int64_t ld : {50257, 50260}) {
      for (const int rows : {1, 5, 33}) ExpectTheSamplers(RandomRows(rows, 50257, ld, seed));
    }
  }
}

TEST_F(CudaDrawsTest, AreTheHostsWhereThereAreMoreRowsThanTheDeviceTakesAtOnce) {
  ExpectTheSamplers(RandomRows(300, 50257, 50260, 5));
  ExpectTheSamplers(RandomRows(700, 3000, 3000, 6));
}

TEST_F(CudaDrawsTest, AreTheHostsWhereSharedMemoryHasNoRoomForTheRow) {
  ExpectTheSamplers(RandomRows(9, 600000, 600000, 7));
}

}  // namespace
}  // namespace smt::cuda
