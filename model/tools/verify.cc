// smt_model verify: a fixture's tensors against what the model computes, by both ways of computing it: all windows in
// parallel, and token by token as the server does.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_format.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/io/safetensors.h"
#include "model/state_layout.h"
#include "model/tools/commands.h"
#include "model/tools/compute.h"

namespace smt::tools {
namespace {

struct Tolerance {
  double absolute, relative;
  std::string text;
};
const Tolerance kLogits{1e-3, 0, "1e-3"}, kWrites{1e-4, 0, "1e-4"}, kState{1e-4, 1e-5, "1e-4 + 1e-5 |x|"};
constexpr double kGreedyMargin = 2e-3;

struct Row {
  std::string tensor, way;
  double largest = 0;  // difference
  std::string allowed;
  bool ok = true;
};

class Verification {
 public:
  Verification(const StrideHybridConfig& config, const SafetensorsReader& fixture)
      : config_(config), layout_(config), fixture_(fixture) {}

  bool Has(std::string_view name) const { return fixture_.Find(name) != nullptr; }

  absl::Status Compare(const std::string& name, const std::vector<int64_t>& shape, std::span<const float> got,
                       const Tolerance& tolerance, const std::string& way) {
    if (!Has(name)) return absl::OkStatus();
    checked_.insert(name);
    RETURN_IF_ERROR(fixture_.Get(name, shape).status());
    ASSIGN_OR_RETURN(const std::vector<float> want, fixture_.ReadFloat32(name));
    Row row{name, way, 0, tolerance.text, true};
    for (size_t i = 0; i < want.size(); ++i) {
      const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
      const double allowed = tolerance.absolute + tolerance.relative * std::abs(static_cast<double>(want[i]));
      if (!(difference <= allowed)) row.ok = false;  // NaN too
      if (!(difference <= row.largest)) row.largest = difference;
    }
    rows_.push_back(row);
    return absl::OkStatus();
  }

  // Everything that one pass over input_ids shows. The memory stream is the same under both policies.
  absl::Status CompareComputed(const Computed& computed, WindowPolicy policy, int64_t length, const std::string& way) {
    const int64_t writes = length / config_.stride;
    RETURN_IF_ERROR(
        Compare(StrCat("logits_", Name(policy)), {length, config_.vocab_size}, computed.logits, kLogits, way));
    RETURN_IF_ERROR(Compare("ssm_outputs", {writes, config_.d_model}, computed.ssm_outputs, kWrites, way));
    RETURN_IF_ERROR(Compare("pool_weights", {writes, config_.window()}, computed.pool_weights, kWrites, way));
    const bool mamba = config_.ssm.kind == SsmKind::kMamba;
    const std::vector<int64_t> conv_shape = {config_.d_inner(), config_.ssm.d_conv};
    const std::vector<int64_t> state_shape =
        mamba ? std::vector<int64_t>{config_.d_inner(), config_.ssm.d_state} : std::vector<int64_t>{config_.d_model};
    const std::span<const float> conv = layout_.conv(std::span<const std::byte>(computed.state));
    const std::span<const float> state = layout_.state(std::span<const std::byte>(computed.state));
    const size_t layers = static_cast<size_t>(config_.ssm.n_layer);
    for (size_t i = 0; i < layers; ++i) {
      const size_t conv_size = conv.size() / layers, state_size = state.size() / layers;
      if (mamba) {
        RETURN_IF_ERROR(
            Compare(StrCat("ssm_conv.", i), conv_shape, conv.subspan(i * conv_size, conv_size), kState, way));
      }
      RETURN_IF_ERROR(
          Compare(StrCat("ssm_state.", i), state_shape, state.subspan(i * state_size, state_size), kState, way));
    }
    return absl::OkStatus();
  }

  // Teacher-forced: after the prompt and the fixture's own ids before it, each id is the argmax or close to it.
  absl::Status CompareGreedy(const ComputeOptions& options, WindowPolicy policy, const std::vector<int32_t>& prompt) {
    const std::string name = StrCat("greedy_", Name(policy));
    if (!Has(name)) return absl::OkStatus();
    checked_.insert(name);
    ASSIGN_OR_RETURN(const std::vector<int32_t> want, fixture_.ReadInt32(name));
    ASSIGN_OR_RETURN(const std::unique_ptr<SlotRunner> runner, NewRunner(options));
    constexpr int32_t kSlot[] = {0};
    runner->Reset(0);
    if (!prompt.empty()) {
      const SlotRunner::Chunk chunk{0, prompt};
      runner->Ingest({&chunk, 1});
    }
    std::vector<float> logits(static_cast<size_t>(config_.vocab_size));
    if (!prompt.empty()) runner->Logits(kSlot, logits.data());
    Row row{name, "stepwise", 0, StrCat("argmax or within ", absl::StrFormat("%g", kGreedyMargin)), true};
    for (size_t i = 0; i < want.size(); ++i) {
      if (want[i] < 0 || want[i] >= config_.vocab_size) {
        return absl::InvalidArgumentError(StrCat(fixture_.source(), ": ", name, "[", i, "] is ", want[i],
                                                 ", must be in [0, ", config_.vocab_size, "), the vocabulary"));
      }
      if (!prompt.empty() || i > 0) {  // before the first id there are no logits
        const double best = *std::max_element(logits.begin(), logits.end());
        const double margin = best - static_cast<double>(logits[static_cast<size_t>(want[i])]);
        if (!(margin <= kGreedyMargin)) row.ok = false;
        if (!(margin <= row.largest)) row.largest = margin;
      }
      runner->Step(kSlot, std::span(want).subspan(i, 1), logits.data());
    }
    rows_.push_back(row);
    return absl::OkStatus();
  }

  void Print(bool json) const;
  bool ok() const {
    return std::all_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.ok; });
  }
  size_t compared() const { return rows_.size(); }

 private:
  std::vector<std::string> NotCompared() const {
    std::vector<std::string> names;
    for (const TensorInfo& info : fixture_.tensors()) {
      if (info.name != "input_ids" && !checked_.contains(info.name)) names.push_back(info.name);
    }
    return names;
  }

  const StrideHybridConfig& config_;
  const StateLayout layout_;
  const SafetensorsReader& fixture_;
  std::vector<Row> rows_;
  std::set<std::string> checked_;
};

void Verification::Print(bool json) const {
  if (json) {
    nlohmann::ordered_json root;
    root["ok"] = ok();
    root["rows"] = nlohmann::ordered_json::array();
    for (const Row& row : rows_) {
      root["rows"].push_back({{"tensor", row.tensor},
                              {"way", row.way},
                              {"largest_difference", row.largest},  // null for NaN
                              {"allowed", row.allowed},
                              {"ok", row.ok}});
    }
    root["not_compared"] = NotCompared();
    std::printf("%s\n", root.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return;
  }
  std::printf("%-4s  %-14s %-9s %-12s %s\n", "", "tensor", "computed", "difference", "allowed");
  for (const Row& row : rows_) {
    std::printf("%-4s  %-14s %-9s %-12.3g %s\n", row.ok ? "ok" : "FAIL", row.tensor.c_str(), row.way.c_str(),
                row.largest, row.allowed.c_str());
  }
  for (const std::string& name : NotCompared()) std::printf("not compared: %s\n", name.c_str());
}

}  // namespace

absl::Status RunVerify(const VerifyOptions& options) {
  ASSIGN_OR_RETURN(const StrideHybridConfig config, StrideHybridConfig::Load(options.model_dir));
  ASSIGN_OR_RETURN(const SafetensorsReader fixture, SafetensorsReader::Open(options.fixture));
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadInputIds(options.fixture, config.vocab_size));
  Verification verification(config, fixture);
  ComputeOptions compute{options.model_dir, options.device, options.dtype, std::nullopt};
  const int64_t length = static_cast<int64_t>(ids.size());
  const bool any_policy = verification.Has("logits_hop") || verification.Has("logits_slide");
  for (const WindowPolicy policy : {WindowPolicy::kHop, WindowPolicy::kSlide}) {
    compute.window_policy = policy;
    if (any_policy ? verification.Has(StrCat("logits_", Name(policy))) : policy == config.window_policy) {
      ASSIGN_OR_RETURN(const Computed parallel, ComputeParallel(compute, ids));
      RETURN_IF_ERROR(verification.CompareComputed(parallel, policy, length, "parallel"));
      ASSIGN_OR_RETURN(const Computed stepwise, ComputeStepwise(compute, ids));
      RETURN_IF_ERROR(verification.CompareComputed(stepwise, policy, length, "stepwise"));
    }
    RETURN_IF_ERROR(verification.CompareGreedy(compute, policy, ids));
  }
  if (verification.compared() == 0) {
    return absl::InvalidArgumentError(
        StrCat(options.fixture,
               " has nothing to compare: it must have logits_hop, logits_slide, greedy_hop, greedy_slide, "
               "ssm_outputs, pool_weights, ssm_conv.I or ssm_state.I"));
  }
  verification.Print(options.json);
  if (!verification.ok()) return absl::AbortedError("the model differs from the fixture by more than is allowed");
  return absl::OkStatus();
}

}  // namespace smt::tools
