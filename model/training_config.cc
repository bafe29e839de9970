#include "model/training_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <type_traits>

#include "absl/strings/str_format.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/config_json.h"

namespace smt {
namespace {

using fields::Choice;
using fields::Field;
using fields::Flag;
using fields::Integer;
using fields::Real;
using fields::Text;

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr std::pair<LearningRateSchedule, std::string_view> kScheduleNames[] = {
    {LearningRateSchedule::kCosine, "cosine"},
    {LearningRateSchedule::kLinear, "linear"},
    {LearningRateSchedule::kConstant, "constant"}};
constexpr std::pair<Precision, std::string_view> kPrecisionNames[] = {{Precision::kFloat32, "float32"},
                                                                      {Precision::kBfloat16, "bfloat16"}};

template <typename Config, typename Visitor>
void VisitTrainingFields(Config& c, Visitor& visit) {
  constexpr int64_t kSteps = int64_t{1} << 40, kSeed = INT64_MAX;
  constexpr bool kOpen = false;  // the lower end is not allowed
  visit(Field{"data.train_path"}, c.data.train_path, Text{4096});
  visit(Field{"data.validation_path"}, c.data.validation_path, Text{4096});
  visit(Field{"data.sequence_length"}, c.data.sequence_length, Integer{1, 1 << 20});
  visit(Field{"data.batch_size"}, c.data.batch_size, Integer{1, 1 << 16});
  visit(Field{"data.carry_state"}, c.data.carry_state, Flag{});
  visit(Field{"data.shuffle_seed"}, c.data.shuffle_seed, Integer{0, kSeed});
  visit(Field{"optimizer.learning_rate"}, c.optimizer.learning_rate, Real{0, 10, kOpen});
  visit(Field{"optimizer.ssm_learning_rate_scale"}, c.optimizer.ssm_learning_rate_scale, Real{0, 100});
  visit(Field{"optimizer.beta1"}, c.optimizer.beta1, Real{0, 0.9999999});
  visit(Field{"optimizer.beta2"}, c.optimizer.beta2, Real{0, 0.9999999});
  visit(Field{"optimizer.epsilon"}, c.optimizer.epsilon, Real{0, 1, kOpen});
  visit(Field{"optimizer.weight_decay"}, c.optimizer.weight_decay, Real{0, 10});
  visit(Field{"optimizer.gradient_clip_norm"}, c.optimizer.gradient_clip_norm, Real{0, 1e6});
  visit(Field{"schedule.kind"}, c.schedule.kind, Choice<LearningRateSchedule>{kScheduleNames});
  visit(Field{"schedule.steps"}, c.schedule.steps, Integer{1, kSteps});
  visit(Field{"schedule.warmup_steps"}, c.schedule.warmup_steps, Integer{0, kSteps});
  visit(Field{"schedule.final_fraction"}, c.schedule.final_fraction, Real{0, 1});
  visit(Field{"accumulation_steps"}, c.accumulation_steps, Integer{1, 1 << 16});
  visit(Field{"precision"}, c.precision, Choice<Precision>{kPrecisionNames});
  visit(Field{"seed"}, c.seed, Integer{0, kSeed});
  visit(Field{"logging.every_steps"}, c.logging.every_steps, Integer{1, kSteps});
  visit(Field{"logging.directory"}, c.logging.directory, Text{4096});
  visit(Field{"checkpoints.directory"}, c.checkpoints.directory, Text{4096});
  visit(Field{"checkpoints.every_steps"}, c.checkpoints.every_steps, Integer{1, kSteps});
  visit(Field{"checkpoints.keep"}, c.checkpoints.keep, Integer{1, 1 << 20});
  visit(Field{"checkpoints.validate_every_steps"}, c.checkpoints.validate_every_steps, Integer{1, kSteps});
}

template <typename E, size_t kCount>
std::string_view NameOf(E value, const std::pair<E, std::string_view> (&names)[kCount]) {
  for (const auto& [known, name] : names) {
    if (known == value) return name;
  }
  return "unknown";
}

std::vector<std::string> Violations(const TrainingConfig& c, const std::set<std::string, std::less<>>& reported = {}) {
  fields::RangeChecker check(reported);
  VisitTrainingFields(c, check);
  check.Rule(!c.data.train_path.empty(), {"data.train_path"}, "empty", "the path of the training data");
  check.Rule(!c.checkpoints.directory.empty(), {"checkpoints.directory"}, "empty", "a folder's path");
  check.Rule(c.schedule.warmup_steps <= c.schedule.steps, {"schedule.warmup_steps", "schedule.steps"},
             StrCat(c.schedule.warmup_steps), StrCat("at most schedule.steps (", c.schedule.steps, ")"));
  return check.Take();
}

}  // namespace

std::string_view Name(LearningRateSchedule schedule) { return NameOf(schedule, kScheduleNames); }
std::string_view Name(Precision precision) { return NameOf(precision, kPrecisionNames); }

double TrainingConfig::LearningRate(int64_t step) const {
  const double peak = optimizer.learning_rate;
  if (step < schedule.warmup_steps) {
    return peak * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
  }
  const double span = static_cast<double>(std::max<int64_t>(1, schedule.steps - 1 - schedule.warmup_steps));
  const double progress = std::min(1.0, static_cast<double>(step - schedule.warmup_steps) / span);
  const double last = schedule.final_fraction;
  switch (schedule.kind) {
    case LearningRateSchedule::kCosine:
      return peak * (last + (1 - last) * (1 + std::cos(std::numbers::pi * progress)) / 2);
    case LearningRateSchedule::kLinear:
      return peak * (1 - (1 - last) * progress);
    case LearningRateSchedule::kConstant:
      return peak;
  }
  return peak;
}

std::vector<std::string> TrainingConfig::Validate() const { return Violations(*this); }

std::vector<std::string> TrainingConfig::Warnings(const StrideHybridConfig& model) const {
  std::vector<std::string> warnings;
  if (!Validate().empty()) return warnings;
  const auto warn = [&](bool unwise, const auto&... sentence) {
    if (unwise) warnings.push_back(StrCat(sentence...));
  };
  warn(data.sequence_length < 2 * model.stride, "data.sequence_length is ", data.sequence_length,
       ": fewer than two writes (stride ", model.stride, ") fit in, so the memory is hardly trained");
  warn(data.sequence_length % model.stride != 0, "data.sequence_length is ", data.sequence_length,
       ", not a multiple of stride (", model.stride, "): chunks end between writes");
  warn(!data.carry_state && data.sequence_length < 8 * model.stride,
       "data.carry_state is false and a sample has fewer than 8 writes: long memory is never trained");
  warn(optimizer.learning_rate > 1e-2, "optimizer.learning_rate is ", fields::ShowReal(optimizer.learning_rate),
       ", high for AdamW");
  warn(optimizer.gradient_clip_norm == 0,
       "optimizer.gradient_clip_norm is 0: one bad batch through the recurrence can end the run");
  warn(schedule.warmup_steps == 0, "schedule.warmup_steps is 0: AdamW's first steps are the largest");
  warn(schedule.warmup_steps * 2 > schedule.steps, "schedule.warmup_steps is more than half of schedule.steps");
  warn(data.validation_path.empty(), "data.validation_path is empty: the best checkpoint cannot be told");
  warn(checkpoints.every_steps > schedule.steps, "checkpoints.every_steps is more than schedule.steps (",
       schedule.steps, "): only the end is saved");
  return warnings;
}

std::string TrainingConfig::Summary() const {
  const double tokens = static_cast<double>(tokens_per_step()) * static_cast<double>(schedule.steps);
  return absl::StrFormat(
      "Training: %d steps of %d tokens (%d samples of %d, accumulated %d times), %.3gM tokens in all\n"
      "  AdamW: learning rate %g, betas %g and %g, weight decay %g, gradients clipped at %g\n"
      "  schedule: %s after %d warm-up steps, down to %g of the peak; %s\n"
      "  data: %s%s; state %s between chunks\n"
      "  a log line every %d steps; a checkpoint in %s every %d, the newest %d kept\n",
      schedule.steps, tokens_per_step(), data.batch_size, data.sequence_length, accumulation_steps, tokens / 1e6,
      optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.gradient_clip_norm,
      Name(schedule.kind), schedule.warmup_steps, schedule.final_fraction, Name(precision), data.train_path,
      data.validation_path.empty() ? "" : ", validated on " + data.validation_path,
      data.carry_state ? "carried" : "reset", logging.every_steps, checkpoints.directory, checkpoints.every_steps,
      checkpoints.keep);
}

absl::StatusOr<TrainingConfig> TrainingConfig::FromJson(std::string_view text, std::vector<std::string>* warnings) {
  ASSIGN_OR_RETURN(const nlohmann::json root, fields::ParseJsonObject(text));
  TrainingConfig config;
  fields::JsonFieldReader reader(root);
  VisitTrainingFields(config, reader);
  std::vector<std::string> violations = std::move(reader.violations());
  const std::vector<std::string> rest = Violations(config, reader.bad_fields());
  violations.insert(violations.end(), rest.begin(), rest.end());
  RETURN_IF_ERROR(fields::ViolationsError(violations));
  if (warnings != nullptr) *warnings = reader.UnknownKeys({});
  return config;
}

absl::StatusOr<TrainingConfig> TrainingConfig::Load(const std::string& path, std::vector<std::string>* warnings) {
  ASSIGN_OR_RETURN(const std::string text, fields::ReadSmallFile(path, kMaxConfigBytes));
  absl::StatusOr<TrainingConfig> config = FromJson(text, warnings);
  if (!config.ok()) return absl::Status(config.status().code(), StrCat(path, ": ", config.status().message()));
  return config;
}

std::string TrainingConfig::ToJson() const {
  nlohmann::ordered_json root;
  fields::JsonFieldWriter writer(root);
  VisitTrainingFields(*this, writer);
  return root.dump(1) + "\n";
}

}  // namespace smt
