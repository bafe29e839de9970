#include "model/training_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace smt {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TrainingConfig Valid() {
  TrainingConfig config;
  config.data.train_path = "train.bin";
  config.data.validation_path = "validation.bin";
  config.checkpoints.directory = "runs/a";
  return config;
}

TEST(TrainingConfigTest, DefaultsNeedOnlyTheirPaths) {
  EXPECT_THAT(TrainingConfig().Validate(), SizeIs(2));
  EXPECT_THAT(Valid().Validate(), IsEmpty());
  EXPECT_THAT(Valid().Warnings(StrideHybridConfig()), IsEmpty());
}

TEST(TrainingConfigTest, EveryViolationIsReportedAtOnce) {
  const auto config = TrainingConfig::FromJson(R"({
    "data": {"sequence_length": 0, "batch_size": "large", "train_path": 5},
    "optimizer": {"beta1": 1, "learning_rate": 0, "epsilon": -1, "weight_decay": []},
    "schedule": {"kind": "sine", "warmup_steps": 300, "steps": 200, "final_fraction": 1.5},
    "precision": "float16", "checkpoints": 3})");
  ASSERT_FALSE(config.ok());
  const std::string error(config.status().message());
  for (const char* part :
       {"12 violations", "data.sequence_length is 0", "data.batch_size is \"large\"", "data.train_path is 5",
        "optimizer.beta1 is 1", "optimizer.learning_rate is 0", "optimizer.epsilon is -1",
        "optimizer.weight_decay is an array", "schedule.kind is \"sine\"",
        "schedule.warmup_steps is 300, must be at most schedule.steps (200)", "schedule.final_fraction is 1.5",
        "precision is \"float16\"", "checkpoints is 3, must be an object"}) {
    EXPECT_THAT(error, HasSubstr(part));
  }
}

TEST(TrainingConfigTest, AnEmptyPathIsAViolationButFieldsOfABadObjectAreNotJudgedBesides) {
  const auto error = [](const std::string& text) {
    return std::string(TrainingConfig::FromJson(text).status().message());
  };
  EXPECT_THAT(error(R"({"data": {"train_path": "a"}})"), HasSubstr("1 violation: checkpoints.directory is empty"));
  EXPECT_THAT(error(R"({"data": {"train_path": "a"}, "checkpoints": 3})"), HasSubstr("1 violation: checkpoints is 3"));
}

TEST(TrainingConfigTest, RoundTripIsStable) {
  TrainingConfig config = Valid();
  config.optimizer.learning_rate = 0.1 + 0.2;
  config.schedule.kind = LearningRateSchedule::kLinear;
  config.precision = Precision::kBfloat16;
  config.data.carry_state = false;
  const std::string json = config.ToJson();
  const auto again = TrainingConfig::FromJson(json);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->ToJson(), json);
  EXPECT_EQ(again->optimizer.learning_rate, 0.1 + 0.2);
  EXPECT_EQ(again->precision, Precision::kBfloat16);
}

TEST(TrainingConfigTest, TheLearningRateWarmsUpPeaksAndEndsAtItsFraction) {
  TrainingConfig config = Valid();
  config.schedule.steps = 1000;
  config.schedule.warmup_steps = 100;
  EXPECT_NEAR(config.LearningRate(0), 3e-6, 1e-12);
  EXPECT_DOUBLE_EQ(config.LearningRate(99), 3e-4);
  EXPECT_DOUBLE_EQ(config.LearningRate(100), 3e-4);
  EXPECT_NEAR(config.LearningRate(999), 3e-5, 1e-12);
  EXPECT_NEAR(config.LearningRate(5000), 3e-5, 1e-12);
  for (int64_t step = 101; step < 1000; ++step) EXPECT_LT(config.LearningRate(step), config.LearningRate(step - 1));
}

TEST(TrainingConfigTest, SamplesTooShortForTheMemoryAreWarnedOf) {
  TrainingConfig config = Valid();
  config.data.sequence_length = 30;
  EXPECT_THAT(config.Warnings(StrideHybridConfig()), Contains(HasSubstr("fewer than two writes")));
}

}  // namespace
}  // namespace smt
