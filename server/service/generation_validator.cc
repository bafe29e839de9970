#include <cmath>
#include <set>

#include "model/base/strings.h"
#include "server/service/names.h"
#include "server/service/proto_time.h"
#include "server/service/validators.h"

namespace smt {
namespace {

constexpr int kMaxIdViolations = 8;  // of one list of ids: a client that is wrong about one is wrong about all

std::string Show(float value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "infinity" : "-infinity";
  return StrCat(value);
}

// Written so that NaN is outside.
void CheckRange(const std::string& field, float value, float low, float high, bool low_open, Violations* violations) {
  if (value >= low && value <= high && !(low_open && value == low)) return;
  violations->Add(field,
                  StrCat("is ", Show(value), "; allowed is ", low_open ? "greater than " : "", low, " to ", high));
}

template <typename Int>
void CheckRange(const std::string& field, Int value, int64_t low, int64_t high, Violations* violations) {
  if (value >= low && value <= high) return;
  violations->Add(field, StrCat("is ", value, "; allowed is ", low, " to ", high));
}

template <typename Ids>
void CheckIds(const std::string& field, const Ids& ids, int32_t vocab_size, Violations* violations) {
  int found = 0;
  for (int i = 0; i < ids.size() && found < kMaxIdViolations; ++i) {
    if (ids.Get(i) >= 0 && ids.Get(i) < vocab_size) continue;
    violations->Add(StrCat(field, "[", i, "]"),
                    StrCat("is ", ids.Get(i), "; allowed is 0 to ", vocab_size - 1, ", the model's vocabulary"));
    ++found;
  }
}

// The oneof `input` that several requests have.
template <typename Request>
void CheckInput(const std::string& prefix, const Request& request, const RequestLimits& limits,
                Violations* violations) {
  const auto check_bytes = [&](const char* name, const std::string& bytes) {
    if (static_cast<int64_t>(bytes.size()) > limits.max_prompt_bytes) {
      violations->Add(prefix + name, StrCat("is ", bytes.size(), " bytes long; allowed are at most ",
                                            limits.max_prompt_bytes, " (--max_prompt_bytes)"));
    }
  };
  if (request.input_case() == Request::kText) check_bytes("text", request.text());
  if (request.input_case() == Request::kTextBytes) check_bytes("text_bytes", request.text_bytes());
  if constexpr (requires { request.token_ids().ids(); }) {
    if (request.input_case() == Request::kTokenIds) {
      const auto& ids = request.token_ids().ids();
      if (ids.size() > limits.max_prompt_tokens) {
        violations->Add(prefix + "token_ids.ids", StrCat("has ", ids.size(), " ids; allowed are at most ",
                                                         limits.max_prompt_tokens, " (--max_prompt_tokens)"));
      }
      CheckIds(prefix + "token_ids.ids", ids, limits.vocab_size, violations);
    }
  }
}

void CheckSampling(const v1::SamplingOptions& sampling, const RequestLimits& limits, Violations* violations) {
  const std::string prefix = "spec.sampling.";
  if (sampling.has_temperature()) {
    CheckRange(prefix + "temperature", sampling.temperature(), 0.0f, 100.0f, false, violations);
  }
  CheckRange(prefix + "top_k", sampling.top_k(), 0, limits.vocab_size, violations);
  if (sampling.has_top_p()) CheckRange(prefix + "top_p", sampling.top_p(), 0.0f, 1.0f, true, violations);
  CheckRange(prefix + "min_p", sampling.min_p(), 0.0f, 1.0f, false, violations);
  if (sampling.has_repetition_penalty()) {
    CheckRange(prefix + "repetition_penalty", sampling.repetition_penalty(), 0.0f, 10.0f, true, violations);
  }
  CheckRange(prefix + "presence_penalty", sampling.presence_penalty(), -2.0f, 2.0f, false, violations);
  CheckRange(prefix + "frequency_penalty", sampling.frequency_penalty(), -2.0f, 2.0f, false, violations);
  if (sampling.logit_bias_size() > limits.max_logit_bias) {
    violations->Add(prefix + "logit_bias", StrCat("has ", sampling.logit_bias_size(), " entries; allowed are at most ",
                                                  limits.max_logit_bias));
    return;
  }
  std::set<int32_t> seen;
  for (int i = 0; i < sampling.logit_bias_size(); ++i) {
    const std::string entry = StrCat(prefix, "logit_bias[", i, "].");
    const v1::LogitBias& bias = sampling.logit_bias(i);
    CheckRange(entry + "token_id", bias.token_id(), 0, limits.vocab_size - 1, violations);
    CheckRange(entry + "bias", bias.bias(), -100.0f, 100.0f, false, violations);
    if (!seen.insert(bias.token_id()).second) {
      violations->Add(entry + "token_id", StrCat("is ", bias.token_id(), " again; each id may appear once"));
    }
  }
}

void CheckStopping(const v1::StoppingOptions& stopping, const RequestLimits& limits, Violations* violations) {
  const std::string prefix = "spec.stopping.";
  const int64_t max_tokens = stopping.has_max_tokens() ? stopping.max_tokens() : limits.default_max_tokens;
  if (max_tokens < 0 || max_tokens > limits.max_tokens) {
    violations->Add(prefix + "max_tokens", StrCat("is ", max_tokens, "; allowed is 0 (ingest only) to ",
                                                  limits.max_tokens, " (--max_tokens_limit)"));
  } else {
    CheckRange(prefix + "min_tokens", stopping.min_tokens(), 0, max_tokens, violations);
  }
  if (stopping.stop_strings_size() > limits.max_stop_strings) {
    violations->Add(prefix + "stop_strings", StrCat("has ", stopping.stop_strings_size(),
                                                    " entries; allowed are at most ", limits.max_stop_strings));
  } else {
    std::set<std::string> seen;
    for (int i = 0; i < stopping.stop_strings_size(); ++i) {
      const std::string field = StrCat(prefix, "stop_strings[", i, "]");
      const std::string& stop = stopping.stop_strings(i);
      if (stop.empty()) {
        violations->Add(field, StrCat("is empty; allowed are 1 to ", limits.max_stop_string_bytes, " bytes"));
      } else if (static_cast<int64_t>(stop.size()) > limits.max_stop_string_bytes) {
        violations->Add(field, StrCat("is ", ShowValue(stop), ", ", stop.size(), " bytes long; allowed are 1 to ",
                                      limits.max_stop_string_bytes, " bytes"));
      } else if (!seen.insert(stop).second) {
        violations->Add(field, StrCat("is ", ShowValue(stop), " again; each may appear once"));
      }
    }
  }
  if (stopping.stop_token_ids_size() > limits.max_stop_token_ids) {
    violations->Add(prefix + "stop_token_ids", StrCat("has ", stopping.stop_token_ids_size(),
                                                      " ids; allowed are at most ", limits.max_stop_token_ids));
    return;
  }
  CheckIds(prefix + "stop_token_ids", stopping.stop_token_ids(), limits.vocab_size, violations);
  std::set<int32_t> seen;
  for (int i = 0; i < stopping.stop_token_ids_size(); ++i) {
    if (!seen.insert(stopping.stop_token_ids(i)).second) {
      violations->Add(StrCat(prefix, "stop_token_ids[", i, "]"),
                      StrCat("is ", stopping.stop_token_ids(i), " again; each id may appear once"));
    }
  }
}

void CheckOutput(const v1::OutputOptions& output, const RequestLimits& limits, Violations* violations) {
  if (output.has_top_logprobs()) {
    CheckRange("spec.output.top_logprobs", output.top_logprobs(), 0, limits.max_top_logprobs, violations);
  }
  if (output.has_prompt_logprobs()) {
    CheckRange("spec.output.prompt_logprobs", output.prompt_logprobs(), 0, limits.max_top_logprobs, violations);
  }
}

void CheckEnum(const std::string& field, int value, bool known, Violations* violations) {
  if (!known) violations->Add(field, StrCat("is ", value, ", which this server does not know"));
}

}  // namespace

void ValidateSpec(const v1::GenerationSpec& spec, const RequestLimits& limits, Violations* violations) {
  CheckInput("spec.", spec, limits, violations);
  if (!spec.session().empty()) ValidateSessionName("spec.session", spec.session(), violations);
  const bool has_session = !spec.session().empty() || spec.create_session();
  if (spec.input_case() == v1::GenerationSpec::INPUT_NOT_SET && spec.session().empty()) {
    violations->Add("spec.input",
                    "is not set; text, text_bytes or token_ids is required without a session to go on with");
  }
  if (!spec.request_id().empty()) {
    if (!IsValidRequestId(spec.request_id())) {
      violations->Add("spec.request_id", StrCat("is ", ShowValue(spec.request_id()),
                                                "; allowed are 1 to 64 characters of [A-Za-z0-9_.:-]"));
    } else if (!has_session) {
      violations->Add("spec.request_id",
                      StrCat("is ", ShowValue(spec.request_id()), "; only requests with a session can have one"));
    }
  }
  if (spec.has_expected_position()) {
    if (spec.expected_position() < 0) {
      violations->Add("spec.expected_position", StrCat("is ", spec.expected_position(), "; allowed is 0 or more"));
    } else if (!has_session) {
      violations->Add("spec.expected_position", StrCat("is ", spec.expected_position(), " but there is no session"));
    }
  }
  if (spec.has_etag() && !has_session) {
    violations->Add("spec.etag", StrCat("is ", ShowValue(spec.etag()), " but there is no session"));
  }
  CheckSampling(spec.sampling(), limits, violations);
  CheckStopping(spec.stopping(), limits, violations);
  CheckOutput(spec.output(), limits, violations);
  CheckEnum("spec.on_disconnect", spec.on_disconnect(), v1::DisconnectPolicy_IsValid(spec.on_disconnect()), violations);
  CheckEnum("spec.durability", spec.durability(), v1::Durability_IsValid(spec.durability()), violations);
  if (spec.has_max_duration()) {
    const auto duration = FromProto(spec.max_duration());
    if (!duration || *duration <= absl::ZeroDuration()) {
      violations->Add("spec.max_duration", StrCat("is ", spec.max_duration().seconds(), " s ",
                                                  spec.max_duration().nanos(), " ns; allowed is more than 0"));
    }
  }
  CheckRange("spec.priority", spec.priority(), -100, 100, violations);
}

void ValidateScore(const v1::ScoreRequest& request, const RequestLimits& limits, Violations* violations) {
  if (request.input_case() == v1::ScoreRequest::INPUT_NOT_SET) {
    violations->Add("input", "is not set; text, text_bytes or token_ids is required");
  }
  CheckInput("", request, limits, violations);
  if (!request.session().empty()) ValidateSessionName("session", request.session(), violations);
  if (request.has_expected_position()) {
    if (request.expected_position() < 0) {
      violations->Add("expected_position", StrCat("is ", request.expected_position(), "; allowed is 0 or more"));
    } else if (request.session().empty()) {
      violations->Add("expected_position", StrCat("is ", request.expected_position(), " but there is no session"));
    }
  }
  CheckRange("top_logprobs", request.top_logprobs(), 0, limits.max_top_logprobs, violations);
  CheckRange("priority", request.priority(), -100, 100, violations);
}

void ValidateTokenize(const v1::TokenizeRequest& request, const RequestLimits& limits, Violations* violations) {
  if (request.input_case() == v1::TokenizeRequest::INPUT_NOT_SET) {
    violations->Add("input", "is not set; text or text_bytes is required");
  }
  CheckInput("", request, limits, violations);
}

void ValidateDetokenize(const v1::DetokenizeRequest& request, const RequestLimits& limits, Violations* violations) {
  if (request.token_ids_size() > limits.max_prompt_tokens) {
    violations->Add("token_ids", StrCat("has ", request.token_ids_size(), " ids; allowed are at most ",
                                        limits.max_prompt_tokens, " (--max_prompt_tokens)"));
  }
  CheckIds("token_ids", request.token_ids(), limits.vocab_size, violations);
}

void ValidateResume(const v1::ResumeGenerateRequest& request, Violations* violations) {
  ValidateRequestKey(request.session(), request.request_id(), violations);
  if (request.after_position() < 0) {
    violations->Add("after_position", StrCat("is ", request.after_position(), "; allowed are 0 and more"));
  }
  if (!request.after_digest().empty() && request.after_digest().size() != 8) {
    violations->Add("after_digest", StrCat("has ", request.after_digest().size(), " bytes; allowed are 8, or none"));
  }
}

void ValidateRequestKey(std::string_view session, std::string_view request_id, Violations* violations) {
  ValidateSessionName("session", session, violations);
  if (!IsValidRequestId(request_id)) {
    violations->Add("request_id",
                    StrCat("is ", ShowValue(request_id), "; allowed are 1 to 64 characters of [A-Za-z0-9_.:-]"));
  }
}

}  // namespace smt
