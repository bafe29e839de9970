// Weights are integers, so top_k and top_p need no sorted vocabulary: a histogram over the leading bits of each weight
// (count and sum a bucket) tells in which bucket the last kept id lies, and only that bucket is sorted. The result is a
// cut (weight, id): greater weights are kept, and equal ones up to that id.
#include "model/sampling/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "model/sampling/adjust_logits.h"
#include "model/sampling/exp_weight.h"
#include "model/sampling/logit_scan.h"
#include "model/sampling/logprobs.h"
#include "model/sampling/philox.h"

namespace smt {
namespace {

constexpr int kBucketBits = 5;  // of each weight after its leading one
constexpr size_t kBuckets = size_t{34} << kBucketBits;

// Monotone in `weight` (1 .. 2^32).
inline size_t BucketOf(uint64_t weight) {
  const int width = std::bit_width(weight);  // 1 .. 33
  const uint64_t fraction =
      width > kBucketBits ? weight >> (width - 1 - kBucketBits) : weight << (kBucketBits + 1 - width);
  return (static_cast<size_t>(width) << kBucketBits) | (fraction & ((1u << kBucketBits) - 1));
}

int32_t Argmax(std::span<const float> logits, float max) {
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), max) - logits.begin());
}

}  // namespace

struct Sampler::Histogram {
  std::array<uint32_t, kBuckets> count;
  std::array<uint64_t, kBuckets> sum;
};

absl::Status NoIdCanBeDrawn() {
  return absl::InternalError("no id can be drawn: every logit is NaN, -infinity or masked");
}

Sampler::Sampler(int32_t vocab_size)
    : vocab_size_(static_cast<size_t>(vocab_size)),
      adjusted_(vocab_size_),
      weights_(vocab_size_),
      block_sums_((vocab_size_ + kWeightBlock - 1) / kWeightBlock),
      histogram_(std::make_unique<Histogram>()) {
  bucket_.reserve(vocab_size_);
  kept_.reserve(vocab_size_);
}

Sampler::~Sampler() = default;

absl::Status Sampler::Sample(std::span<const float> logits, const SamplingParams& params, const PenaltyState& penalties,
                             int64_t position, SampledToken* out) {
  if (logits.size() != vocab_size_) return absl::InternalError("a row of logits does not match the vocabulary");
  const std::span<const float> row = Adjust(logits, params, penalties);
  const float max = MaxLogit(row);
  if (max == -std::numeric_limits<float>::infinity()) {
    return NoIdCanBeDrawn();
  }
  const float max_scaled = params.temperature > 0 ? max / params.temperature : 0.0f;
  if (!(params.temperature > 0) || !std::isfinite(max_scaled)) {
    out->id = Argmax(row, max);
  } else {
    const uint64_t sum = WeighLogits(row, params.temperature, max_scaled, weights_.data(), block_sums_.data());
    const uint64_t random = DrawBits(params.seed, position);
    const bool cuts = (params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab_size_) || params.top_p < 1.0f ||
                      params.min_p > 0.0f;
    out->id = cuts ? DrawFromKept(random, FindCut(params, sum)) : DrawFromAll(random, sum);
  }
  if (params.top_logprobs >= 0) {
    ComputeLogprobs(logits, out->id, params.top_logprobs, &out->logprobs);
  }
  return absl::OkStatus();
}

std::span<const float> Sampler::Adjust(std::span<const float> logits, const SamplingParams& params,
                                       const PenaltyState& penalties) {
  if (!AdjustsLogits(params, penalties)) return logits;
  std::copy(logits.begin(), logits.end(), adjusted_.begin());
  AdjustLogits(params, penalties, adjusted_);
  return adjusted_;
}

int32_t Sampler::DrawFromAll(uint64_t random, uint64_t sum) const {
  uint64_t rest = ScaleRandom(random, sum);  // < sum, so both searches end inside
  size_t block = 0;
  while (rest >= block_sums_[block]) rest -= block_sums_[block++];
  size_t id = block * kWeightBlock;
  while (rest >= weights_[id]) rest -= weights_[id++];
  return static_cast<int32_t>(id);
}

int32_t Sampler::DrawFromKept(uint64_t random, Cut cut) {
  kept_.clear();
  uint64_t sum = 0;
  for (size_t i = 0; i < vocab_size_; ++i) {
    const uint64_t weight = weights_[i];
    if (weight < cut.weight) continue;
    if (weight == cut.weight && static_cast<int32_t>(i) > cut.last_id) continue;
    kept_.push_back(static_cast<int32_t>(i));
    sum += weight;
  }
  uint64_t rest = ScaleRandom(random, sum);
  size_t at = 0;
  while (rest >= weights_[kept_[at]]) rest -= weights_[kept_[at++]];
  return kept_[at];
}

Sampler::Cut Sampler::FindCut(const SamplingParams& params, uint64_t sum) {
  Cut cut;
  const bool top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab_size_;
  if (top_k || params.top_p < 1.0f) {
    histogram_->count.fill(0);
    histogram_->sum.fill(0);
    for (size_t i = 0; i < vocab_size_; ++i) {
      const uint64_t weight = weights_[i];
      if (weight == 0) continue;
      const size_t bucket = BucketOf(weight);
      ++histogram_->count[bucket];
      histogram_->sum[bucket] += weight;
    }
    if (top_k) cut = CutAtCount(static_cast<uint64_t>(params.top_k), &sum);
    // What top_p keeps of top_k's ids is a prefix of them, so its cut is the tighter one.
    if (params.top_p < 1.0f) cut = CutAtSum(TopPThreshold(params.top_p, sum));
  }
  const uint64_t min_weight = MinPThreshold(params.min_p);
  if (min_weight > cut.weight) cut = {.weight = min_weight};
  return cut;
}

// Ids of one bucket, heaviest first, ties to the lower id.
void Sampler::CollectBucket(size_t bucket) {
  bucket_.clear();
  for (size_t i = 0; i < vocab_size_; ++i) {
    if (weights_[i] != 0 && BucketOf(weights_[i]) == bucket) bucket_.push_back(static_cast<int32_t>(i));
  }
  std::sort(bucket_.begin(), bucket_.end(),
            [this](int32_t a, int32_t b) { return weights_[a] != weights_[b] ? weights_[a] > weights_[b] : a < b; });
}

Sampler::Cut Sampler::CutAtCount(uint64_t count, uint64_t* sum_kept) {
  uint64_t sum = 0;
  for (size_t bucket = kBuckets; bucket-- > 0;) {
    const uint64_t in_bucket = histogram_->count[bucket];
    if (in_bucket < count) {
      count -= in_bucket;
      sum += histogram_->sum[bucket];
      continue;
    }
    CollectBucket(bucket);
    for (size_t i = 0; i < count; ++i) sum += weights_[bucket_[i]];
    *sum_kept = sum;
    const int32_t last = bucket_[count - 1];
    return {.weight = weights_[last], .last_id = last};
  }
  *sum_kept = sum;  // fewer ids have a weight at all
  return {};
}

Sampler::Cut Sampler::CutAtSum(uint64_t threshold) {
  for (size_t bucket = kBuckets; bucket-- > 0;) {
    if (histogram_->sum[bucket] < threshold) {
      threshold -= histogram_->sum[bucket];
      continue;
    }
    CollectBucket(bucket);
    for (int32_t id : bucket_) {
      if (weights_[id] >= threshold) return {.weight = weights_[id], .last_id = id};
      threshold -= weights_[id];
    }
  }
  return {};
}

}  // namespace smt
