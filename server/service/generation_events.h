// What the engine hands over, as the messages of the API. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "server/engine/engine.h"
#include "server/service/text_codec.h"
#include "smt/v1/generation.pb.h"

namespace smt {

inline constexpr size_t kMostIdsInMessage = 16384;

// The label value of the metrics and the log.
std::string ReasonLabel(FinishReason reason);
// nullopt: a generation that ends so breaks off without `finished`.
std::optional<v1::FinishReason> ToProto(FinishReason reason);

// One entry of a log-probability list; `logprobs` may be null.
v1::TokenLogprob ToProto(const TextCodec& codec, int32_t id, const TokenLogprobs* logprobs);

// Both add messages of bounded size. `head` is the position before the prompt.
// The text and ids of a prompt as `echo` chunks:
void AppendEcho(const TextCodec& codec, const std::vector<int32_t>& prompt, int64_t head,
                std::deque<v1::GenerationEvent>* events);
// The log-probabilities of the prompt's ids from `first_position` on:
void AppendPromptLogprobs(const TextCodec& codec, const std::vector<int32_t>& prompt, int64_t head,
                          int64_t first_position, const std::vector<TokenLogprobs>& logprobs,
                          std::deque<v1::GenerationEvent>* events);

}  // namespace smt
