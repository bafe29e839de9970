// equality: how far a window of 16-bit numbers is from a float32 one, on a trained model and a real text. Two
// questions:
//
//   the window alone   kl_nats: at each write the rounded session is given the float32 one's state, so both windows
//                      hold the same memory vectors; between writes a state changes by its tokens only
//   end to end         perplexities: the rounded session keeps its own memory
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/tokenizer/tokenizer.h"
#include "model/window_policy.h"
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/gpu_lines.h"

namespace smt::bench {

using nlohmann::json;

namespace {

constexpr int64_t kMostTokens = 10'000;
constexpr int32_t kOwn = 0, kGiven = 1;  // slots: a memory of its own, and the float32 one's

absl::StatusOr<std::vector<int32_t>> ReadText(const GpuBenchOptions& options, int64_t vocabulary) {
  std::ifstream file(options.text, std::ios::binary);
  if (!file) return absl::NotFoundError("--text: " + options.text + " cannot be read");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<int32_t> ids;
  if (const json array = json::parse(text, nullptr, /*allow_exceptions=*/false); array.is_array()) {
    ids = array.get<std::vector<int32_t>>();
  } else {
    ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(options.reference));
    ids = tokenizer.Encode(text.substr(0, static_cast<size_t>(kMostTokens) * 16));
  }
  ids.resize(std::min(ids.size(), static_cast<size_t>(options.Scale<int64_t>(kMostTokens, 200) + 1)));
  const bool known = std::all_of(ids.begin(), ids.end(), [&](int32_t id) { return id >= 0 && id < vocabulary; });
  if (ids.size() < 2 || !known) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text: ", options.text, " must have two or more ids, each in [0, ", vocabulary, ")"));
  }
  return ids;
}

// Natural logarithms of the probabilities that `logits` stand for.
std::vector<double> LogProbabilities(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  std::vector<double> result;
  result.reserve(logits.size());
  for (const float logit : logits) result.push_back(logit - most - std::log(sum));
  return result;
}

double Divergence(std::span<const double> p, std::span<const double> q) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) sum += std::exp(p[i]) * (p[i] - q[i]);
  return sum;
}

class Comparison {
 public:
  Comparison(std::unique_ptr<SlotRunner> float32, std::unique_ptr<SlotRunner> rounded)
      : float32_(std::move(float32)),
        short_(std::move(rounded)),
        vocabulary_(static_cast<size_t>(float32_->config().vocab_size)),
        state_(float32_->layout().bytes()),
        exact_(vocabulary_),
        rounded_(2 * vocabulary_) {}

  // Appends `id` everywhere and compares what is said about `next`.
  void Take(int32_t id, int32_t next) {
    const int32_t slot = 0, ids[] = {id, id};
    float32_->Step({&slot, 1}, {&id, 1}, exact_.data());
    const std::span<float> own = std::span(rounded_).first(vocabulary_), given = std::span(rounded_).last(vocabulary_);
    if (WritesAt(float32_->config(), float32_->position(slot))) {
      short_->Step({&kOwn, 1}, {&id, 1}, own.data());
      float32_->Save(slot, state_);
      short_->Load(kGiven, state_);
      short_->Logits({&kGiven, 1}, given.data());
    } else {
      const int32_t both[] = {kOwn, kGiven};
      short_->Step(both, ids, rounded_.data());
    }
    const std::vector<double> exact = LogProbabilities(exact_);
    divergence_ += Divergence(exact, LogProbabilities(given));
    nll_float32_ -= exact[static_cast<size_t>(next)];
    nll_short_ -= LogProbabilities(own)[static_cast<size_t>(next)];
    ++tokens_;
  }
  json Figures() const {
    const auto mean = [&](double sum) { return sum / static_cast<double>(tokens_); };
    return {{"kl_nats", mean(divergence_)},
            {"perplexity_float32", std::exp(mean(nll_float32_))},
            {"perplexity", std::exp(mean(nll_short_))},
            {"perplexity_ratio", std::exp(mean(nll_short_ - nll_float32_))},
            {"tokens", tokens_},
            {"float32", float32_->numerics_id()},
            {"numerics_id", short_->numerics_id()}};
  }

 private:
  const std::unique_ptr<SlotRunner> float32_, short_;
  const size_t vocabulary_;
  std::vector<std::byte> state_;
  std::vector<float> exact_, rounded_;  // logits: [V], and [2, V] of kOwn and kGiven
  double divergence_ = 0, nll_float32_ = 0, nll_short_ = 0;
  int64_t tokens_ = 0;
};

absl::StatusOr<std::unique_ptr<SlotRunner>> NewRunner(const GpuBenchOptions& options, const std::string& dtype,
                                                      int slots) {
  RunnerOptions runner = GpuRunner(options, slots);
  runner.model_dir = options.reference;
  runner.dtype = dtype;
  if (options.device != "cpu") runner.impl = RunnerOptions::Impl::kCudaKernels;
  return NewSlotRunner(runner);
}

}  // namespace

json EqualityLine(const GpuBenchOptions& options) {
  if (options.reference.empty()) return {};
  return {{"1", FiguresOf(1, [&]() -> absl::StatusOr<json> {
             ASSIGN_OR_RETURN(std::unique_ptr<SlotRunner> float32, NewRunner(options, "float32", 1));
             ASSIGN_OR_RETURN(std::unique_ptr<SlotRunner> rounded,
                              NewRunner(options, options.dtype == "float32" ? "bfloat16" : options.dtype, 2));
             ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadText(options, float32->config().vocab_size));
             Comparison comparison(std::move(float32), std::move(rounded));
             for (size_t i = 0; i + 1 < ids.size(); ++i) comparison.Take(ids[i], ids[i + 1]);
             return comparison.Figures();
           })}};
}

}  // namespace smt::bench
