// config.json of a model and of its training: read or refused; what was read is written and read to the same again.
#include "model/config.h"
#include "model/training_config.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

template <typename Config>
void Parse(std::string_view text) {
  const auto config = Config::FromJson(text);
  if (!config.ok()) {
    FUZZ_CHECK(absl::IsInvalidArgument(config.status()));
    return;
  }
  const std::string written = config->ToJson();
  const auto again = Config::FromJson(written);
  FUZZ_CHECK(again.ok() && again->ToJson() == written);
}

void Run(std::string_view bytes) {
  Parse<StrideHybridConfig>(bytes);
  Parse<TrainingConfig>(bytes);
}

std::vector<std::string> Seeds() { return {StrideHybridConfig().ToJson(), TrainingConfig().ToJson(), "{}"}; }

}  // namespace

extern const FuzzTarget model_config_target;
const FuzzTarget model_config_target = {"model_config", Run, Seeds};

}  // namespace smt::fuzz
