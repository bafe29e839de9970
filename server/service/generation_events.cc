#include "server/service/generation_events.h"

#include <utility>

#include "server/service/text_assembler.h"

namespace smt {
namespace {

constexpr size_t kMaxMessageBytes = size_t{1} << 20;  // as the API promises

const std::string& TokenBytes(const TextCodec& codec, int32_t id) {
  static const std::string kNoBytes;
  return static_cast<size_t>(id) < codec.token_bytes().size() ? codec.token_bytes()[id] : kNoBytes;
}

}  // namespace

std::string ReasonLabel(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStopToken:
      return "stop_token";
    case FinishReason::kStopString:
      return "stop_string";
    case FinishReason::kMaxTokens:
      return "max_tokens";
    case FinishReason::kMaxDuration:
      return "max_duration";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadlineExceeded:
      return "deadline_exceeded";
    case FinishReason::kDraining:
      return "draining";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

std::optional<v1::FinishReason> ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case FinishReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case FinishReason::kMaxTokens:
      return v1::FINISH_REASON_MAX_TOKENS;
    case FinishReason::kMaxDuration:
      return v1::FINISH_REASON_MAX_DURATION;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    default:
      return std::nullopt;
  }
}

v1::TokenLogprob ToProto(const TextCodec& codec, int32_t id, const TokenLogprobs* logprobs) {
  v1::TokenLogprob out;
  out.set_token_id(id);
  out.set_token_bytes(TokenBytes(codec, id));
  if (logprobs == nullptr) return out;
  out.set_logprob(logprobs->logprob);
  for (const auto& [other, logprob] : logprobs->top) {
    v1::AlternativeToken* alternative = out.add_alternatives();
    alternative->set_token_id(other);
    alternative->set_token_bytes(TokenBytes(codec, other));
    alternative->set_logprob(logprob);
  }
  return out;
}

void AppendEcho(const TextCodec& codec, const std::vector<int32_t>& prompt, int64_t head,
                std::deque<v1::GenerationEvent>* events) {
  // No stop strings: only code points are kept whole across chunks.
  TextAssembler assembler(&codec.token_bytes(), {});
  TextAssembler::Released released;
  const auto flush = [&] {
    if (released.empty()) return;
    v1::GenerationChunk* chunk = events->emplace_back().mutable_chunk();
    chunk->set_echo(true);
    for (const TokenOutput& token : released.tokens) chunk->add_token_ids(token.id);
    chunk->set_text(std::move(released.text));
    chunk->set_position(assembler.released_position());
    released = {};
  };
  for (size_t i = 0; i < prompt.size(); ++i) {
    TokenOutput token;
    token.id = prompt[i];
    token.position = head + 1 + static_cast<int64_t>(i);
    assembler.Append(std::move(token), &released);
    if (released.tokens.size() >= kMostIdsInMessage || released.text.size() >= kMaxMessageBytes / 4) flush();
  }
  assembler.Finish(&released);
  flush();
}

void AppendPromptLogprobs(const TextCodec& codec, const std::vector<int32_t>& prompt, int64_t head,
                          int64_t first_position, const std::vector<TokenLogprobs>& logprobs,
                          std::deque<v1::GenerationEvent>* events) {
  size_t bytes = 0;
  for (size_t i = 0; i < logprobs.size(); ++i) {
    const int64_t position = first_position + static_cast<int64_t>(i);
    if (i == 0 || bytes >= kMaxMessageBytes / 2) {
      events->emplace_back().mutable_prompt_logprobs()->set_first_position(position);
      bytes = 0;
    }
    v1::TokenLogprob entry = ToProto(codec, prompt[position - head - 1], &logprobs[i]);
    bytes += entry.ByteSizeLong();
    events->back().mutable_prompt_logprobs()->mutable_logprobs()->Add(std::move(entry));
  }
}

}  // namespace smt
