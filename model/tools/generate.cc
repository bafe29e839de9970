// smt_model generate: the offline loop over the serving path, one session.
#include <cmath>
#include <cstdio>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/config_json.h"
#include "model/sampling/sampler.h"
#include "model/tokenizer/incremental_decoder.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tools/commands.h"
#include "model/tools/compute.h"
#include "model/tools/ids_json.h"

namespace smt::tools {
namespace {

using fields::Field;
using fields::Integer;
using fields::Real;

absl::Status Validate(const GenerateOptions& o) {
  fields::RangeChecker check;
  constexpr double kFloatMax = 3e38;
  check(Field{"--max_tokens"}, o.max_tokens, Integer{0, INT64_MAX});
  check(Field{"--temperature"}, o.temperature, Real{0, kFloatMax});
  check(Field{"--top_k"}, o.top_k, Integer{0, INT32_MAX});
  check(Field{"--top_p"}, o.top_p, Real{0, 1, /*min_allowed=*/false});
  check(Field{"--min_p"}, o.min_p, Real{0, 1});
  check(Field{"--repetition_penalty"}, o.repetition_penalty, Real{0, kFloatMax, /*min_allowed=*/false});
  return fields::ViolationsError(check.Take());
}

// Text begins with bos where the model has one; ids are taken as given.
absl::StatusOr<std::vector<int32_t>> PromptIds(const GenerateOptions& o, const StrideHybridConfig& config,
                                               const Tokenizer* tokenizer) {
  std::vector<int32_t> ids;
  if (o.prompt_ids) {
    absl::StatusOr<std::vector<int32_t>> given = IdsFromJson(*o.prompt_ids);
    if (!given.ok()) return absl::Status(given.status().code(), StrCat("--prompt_ids: ", given.status().message()));
    ids = *std::move(given);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < config.vocab_size) continue;
      return absl::InvalidArgumentError(fields::Violation(StrCat("--prompt_ids[", i, "]"), StrCat(ids[i]),
                                                          StrCat("in [0, ", config.vocab_size, "), the vocabulary")));
    }
  } else {
    std::string text;
    if (o.prompt) {
      text = *o.prompt;
    } else {
      ASSIGN_OR_RETURN(text, ReadStdin());
    }
    ids = tokenizer->Encode(text);
    if (config.bos_token_id) ids.insert(ids.begin(), static_cast<int32_t>(*config.bos_token_id));
  }
  if (ids.empty()) {
    return absl::InvalidArgumentError(
        "the prompt is empty, must have at least one token (the model has no bos_token_id)");
  }
  return ids;
}

}  // namespace

absl::Status RunGenerate(const GenerateOptions& o) {
  RETURN_IF_ERROR(Validate(o));
  ComputeOptions compute{o.model_dir, o.device, o.dtype, std::nullopt};
  ASSIGN_OR_RETURN(compute.window_policy, PolicyFlag("--window_policy", o.window_policy));
  ASSIGN_OR_RETURN(const StrideHybridConfig config, StrideHybridConfig::Load(o.model_dir));
  std::optional<Tokenizer> tokenizer;
  if (!o.prompt_ids || !o.print_ids) {
    ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(o.model_dir));
    if (tokenizer->vocab_size() > config.vocab_size) {
      return absl::InvalidArgumentError(fields::Violation("vocab_size", StrCat(config.vocab_size),
                                                          StrCat("at least vocab.json's ", tokenizer->vocab_size())));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, PromptIds(o, config, tokenizer ? &*tokenizer : nullptr));
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotRunner> runner, NewRunner(compute));

  SamplingParams params;
  params.temperature = static_cast<float>(o.temperature);
  params.top_k = static_cast<int32_t>(o.top_k);
  params.top_p = static_cast<float>(o.top_p);
  params.min_p = static_cast<float>(o.min_p);
  params.repetition_penalty = static_cast<float>(o.repetition_penalty);
  params.seed = o.seed;
  PenaltyState penalties;
  const size_t prior = std::min(prompt.size(), static_cast<size_t>(config.m_input_tokens));
  penalties.Bind(params, std::span(prompt).last(prior), {});

  constexpr int32_t kSlot[] = {0};
  std::vector<float> logits(static_cast<size_t>(config.vocab_size));
  runner->Reset(0);
  const SlotRunner::Chunk chunk{0, prompt};
  runner->Ingest({&chunk, 1});
  if (o.max_tokens > 0) runner->Logits(kSlot, logits.data());

  Sampler sampler(static_cast<int32_t>(config.vocab_size));
  static const std::vector<std::string> kNoTokens;
  IncrementalDecoder decoder(tokenizer ? tokenizer->token_bytes() : kNoTokens);
  std::vector<int32_t> generated;
  const auto print = [](const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); };
  while (static_cast<int64_t>(generated.size()) < o.max_tokens) {
    SampledToken token;
    RETURN_IF_ERROR(sampler.Sample(logits, params, penalties, runner->position(0) + 1, &token));
    if (!o.ignore_eos && config.eos_token_id && token.id == *config.eos_token_id) break;
    generated.push_back(token.id);
    penalties.Add(token.id);
    if (!o.print_ids) {
      print(decoder.Push(token.id));
      std::fflush(stdout);
    }
    const int32_t id[] = {token.id};
    if (static_cast<int64_t>(generated.size()) < o.max_tokens) runner->Step(kSlot, id, logits.data());
  }
  print((o.print_ids ? IdsToJson(generated) : decoder.Flush()) + "\n");
  return absl::OkStatus();
}

}  // namespace smt::tools
