// No job is ever placed over one that is still wanted, whatever the ring's size, the jobs' and when they are issued.
#include "model/cuda/ring_places.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace smt::cuda {
namespace {

constexpr int kJobs = 8;  // WeightRing's

// WeightRing's way through jobs of these bytes. `issues`: asked each time whether a warp that could issue does.
template <typename Issues>
void GoThrough(uint32_t size, const std::vector<uint32_t>& jobs, Issues issues, const std::string& where) {
  RingPlaces issuer(size), other(size);  // a warp that issues, and one that only uses
  std::vector<int64_t> begins;
  const auto issue = [&](size_t used) {
    while (begins.size() < jobs.size() && issuer.issued() - issuer.used() < kJobs && issues()) {
      const uint32_t bytes = jobs[begins.size()];
      const int64_t at = issuer.Place(bytes);
      if (at < 0) break;
      ASSERT_LE(at + bytes, size) << where << ", job " << begins.size();
      for (size_t live = used; live < begins.size(); ++live) {
        ASSERT_TRUE(at + bytes <= begins[live] || begins[live] + jobs[live] <= at)
            << where << ": job " << begins.size() << " lies on job " << live;
      }
      issuer.Issue(at, bytes);
      begins.push_back(at);
    }
  };
  for (size_t job = 0; job < jobs.size(); ++job) {
    ASSERT_NO_FATAL_FAILURE(issue(job));
    // An empty ring has room for any: else all would wait for ever.
    while (begins.size() == job) ASSERT_NO_FATAL_FAILURE(issue(job));
    const uint32_t at = issuer.Next(jobs[job]);
    ASSERT_EQ(at, begins[job]) << where << ", job " << job;
    ASSERT_EQ(other.Next(jobs[job]), at) << where << ", job " << job;
    issuer.Use();
    other.Use();
  }
}

// The jobs of a block, one of `blocks`: of each product, of `n` outputs and jobs of `bytes`, each `blocks`-th from
// `first` on.
struct Product {
  int n;
  uint32_t bytes;
};
std::vector<uint32_t> JobsOf(const std::vector<Product>& products, int layers, int block, int blocks, bool in_turn) {
  std::vector<uint32_t> jobs;
  for (int layer = 0; layer < layers; ++layer) {
    int before = 0;
    for (const Product& product : products) {
      const int tasks = (product.n + 15) / 16, first = in_turn ? ((block - before) % blocks + blocks) % blocks : block;
      for (int task = first; task < tasks; task += blocks) jobs.push_back(product.bytes);
      before += tasks;
    }
  }
  return jobs;
}
uint32_t TaskBytes(int planes, int k) { return static_cast<uint32_t>(planes * 16 * 2 * (k + 8)); }

TEST(RingPlacesTest, TheProductsOfOurModelsNeverMeetInTheRing) {
  const std::vector<std::vector<Product>> models = {
      // Writes: in, x, dt, out. Then the window: qkv, proj, fc, mlp_proj.
      {{3072, TaskBytes(2, 768)}, {80, TaskBytes(2, 1536)}, {1536, TaskBytes(2, 128)}, {768, TaskBytes(2, 1536)}},
      {{288, TaskBytes(2, 128)}, {38, TaskBytes(2, 256)}, {144, TaskBytes(2, 128)}, {72, TaskBytes(2, 256)}},
      {{2304, TaskBytes(1, 768)}, {768, TaskBytes(1, 768)}, {3072, TaskBytes(1, 768)}, {768, TaskBytes(1, 3072)}},
  };
  for (size_t model = 0; model < models.size(); ++model) {
    uint32_t largest = 0;
    for (const Product& product : models[model]) largest = std::max(largest, product.bytes);
    for (const int blocks : {1, 3, 7, 20, 32, 44, 48, 64, 100, 114, 132}) {
      for (int block = 0; block < blocks; block += 1 + blocks / 8) {
        for (uint32_t size = largest; size <= 225 * 1024; size += size < largest + 4096 ? 16 : 7 * 1024 + 16) {
          for (const bool in_turn : {false, true}) {
            GoThrough(
                size, JobsOf(models[model], 3, block, blocks, in_turn), [] { return true; },
                "model " + std::to_string(model) + ", " + std::to_string(size) + " bytes, block " +
                    std::to_string(block) + " of " + std::to_string(blocks));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(RingPlacesTest, JobsOfAnySizeIssuedAtAnyTimeNeverMeetInTheRing) {
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    const uint32_t size = 1 + random() % 40, largest = 1 + random() % size;
    const uint32_t percent = 10 + random() % 91;
    std::vector<uint32_t> jobs(1 + random() % 60);
    for (uint32_t& bytes : jobs) bytes = random() % 4 == 0 ? largest : 1 + random() % largest;
    GoThrough(
        size, jobs, [&] { return random() % 100 < percent; }, "round " + std::to_string(round));
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace smt::cuda
