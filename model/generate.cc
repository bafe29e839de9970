#include "model/generate.h"

#include <algorithm>
#include <string>

#include "model/base/status_macros.h"
#include "model/sampling/sampler.h"

namespace smt {

absl::StatusOr<std::vector<int32_t>> Generate(SlotRunner& runner, int32_t slot, std::span<const int32_t> prompt,
                                              const GenerateOptions& options) {
  const StrideHybridConfig& config = runner.config();
  if (options.max_tokens < 0) {
    return absl::InvalidArgumentError("max_tokens is " + std::to_string(options.max_tokens) + ", allowed 0 or more");
  }
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= config.vocab_size) {
      return absl::InvalidArgumentError("prompt id " + std::to_string(i) + " is " + std::to_string(prompt[i]) +
                                        ", allowed 0 to " + std::to_string(config.vocab_size - 1));
    }
  }
  if (prompt.empty() && runner.position(slot) == 0) {
    return absl::InvalidArgumentError("the prompt has 0 ids and the session is empty; allowed 1 or more");
  }
  const SlotRunner::Chunk chunk = {slot, prompt};
  runner.Ingest({&chunk, 1});

  // Penalties count the ids that came shortly before, too.
  std::vector<std::byte> state(runner.layout().bytes());
  runner.Save(slot, state);
  const std::span<const std::byte> saved(state);
  const std::span<const int32_t> prior =
      runner.layout().tokens(saved).first(runner.layout().tokens_valid(runner.position(slot)));
  PenaltyState penalties;
  penalties.Bind(options.sampling, prior, {});

  Sampler sampler(static_cast<int32_t>(config.vocab_size));
  std::vector<float> logits(config.vocab_size);
  std::vector<int32_t> ids;
  while (static_cast<int64_t>(ids.size()) < options.max_tokens) {
    if (ids.empty()) {
      runner.Logits({&slot, 1}, logits.data());
    } else {
      runner.Step({&slot, 1}, {&ids.back(), 1}, logits.data());
    }
    SampledToken token;
    RETURN_IF_ERROR(sampler.Sample(logits, options.sampling, penalties, runner.position(slot) + 1, &token));
    ids.push_back(token.id);
    penalties.Add(token.id);
    if (options.on_token && !options.on_token(token.id)) break;
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), token.id) != options.stop_ids.end()) break;
  }
  return ids;
}

}  // namespace smt
