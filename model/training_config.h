// TrainingConfig: everything about a training run that is not the model. Same habits as StrideHybridConfig: one list of
// fields, every violation at once, JSON that round-trips, warnings, a summary. Plain values, no LibTorch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"

namespace smt {

enum class LearningRateSchedule { kCosine, kLinear, kConstant };  // after the warm-up
enum class Precision { kFloat32, kBfloat16 };                     // of the window; the memory path is float32 always

std::string_view Name(LearningRateSchedule schedule);  // "cosine" | "linear" | "constant"
std::string_view Name(Precision precision);            // "float32" | "bfloat16"

struct TrainingConfig {
  struct Data {
    std::string train_path;          // token ids or text; required
    std::string validation_path;     // empty: no validation
    int64_t sequence_length = 1024;  // tokens a sample in one chunk
    int64_t batch_size = 16;         // samples an accumulation step
    bool carry_state = true;         // a chunk starts from the state that the one before it left
    int64_t shuffle_seed = 0;
  } data;

  struct Optimizer {                     // AdamW
    double learning_rate = 3e-4;         // peak
    double ssm_learning_rate_scale = 1;  // of A_log, D and the time steps
    double beta1 = 0.9;
    double beta2 = 0.95;
    double epsilon = 1e-8;
    double weight_decay = 0.1;      // matrices only
    double gradient_clip_norm = 1;  // 0: no clipping
  } optimizer;

  struct Schedule {
    LearningRateSchedule kind = LearningRateSchedule::kCosine;
    int64_t steps = 10000;        // optimizer steps
    int64_t warmup_steps = 200;   // linear from 0; <= steps
    double final_fraction = 0.1;  // of the peak, at the last step
  } schedule;

  int64_t accumulation_steps = 1;  // gradients summed before an optimizer step
  Precision precision = Precision::kFloat32;
  int64_t seed = 0;

  struct Logging {
    int64_t every_steps = 10;
    std::string directory;  // empty: beside the checkpoints
  } logging;

  struct Checkpoints {
    std::string directory;  // required
    int64_t every_steps = 1000;
    int64_t keep = 3;  // newest kept; the best is kept besides
    int64_t validate_every_steps = 500;
  } checkpoints;

  // Tokens that one optimizer step sees.
  int64_t tokens_per_step() const { return data.sequence_length * data.batch_size * accumulation_steps; }
  // At optimizer step `step`, 0-based: warm-up, then the schedule down to final_fraction of the peak.
  double LearningRate(int64_t step) const;

  // As StrideHybridConfig's. Paths must be set but are not looked at.
  std::vector<std::string> Validate() const;
  // Unwise by itself or with `model`.
  std::vector<std::string> Warnings(const StrideHybridConfig& model) const;
  std::string Summary() const;

  static absl::StatusOr<TrainingConfig> FromJson(std::string_view text, std::vector<std::string>* warnings = nullptr);
  static absl::StatusOr<TrainingConfig> Load(const std::string& path, std::vector<std::string>* warnings = nullptr);
  std::string ToJson() const;
};

}  // namespace smt
