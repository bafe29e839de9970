#include "server/service/generation_start.h"

#include <xxhash.h>

#include <random>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/generation_parts.h"
#include "server/service/generation_run.h"
#include "server/service/names.h"
#include "server/service/proto_time.h"
#include "server/service/validators.h"

namespace smt {
namespace {

constexpr int kStartAttempts = 3;

uint64_t DrawSeed() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

Durability ToDurability(v1::Durability durability) {
  switch (durability) {
    case v1::DURABILITY_NONE:
      return Durability::kNone;
    case v1::DURABILITY_TOKEN:
      return Durability::kToken;
    default:
      return Durability::kTurn;
  }
}

template <typename Request>
absl::StatusOr<std::vector<int32_t>> Encode(const ServiceContext& context, const Request& request, bool at_start,
                                            const std::string& prefix) {
  std::vector<int32_t> ids;
  if (request.input_case() == Request::kTokenIds) {
    ids.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
  } else if (request.input_case() != Request::INPUT_NOT_SET) {
    const bool is_text = request.input_case() == Request::kText;
    ids = context.codec->Encode(is_text ? request.text() : request.text_bytes(), request.parse_special_tokens());
    if (at_start && context.bos) ids.insert(ids.begin(), *context.bos);
  }
  if (static_cast<int64_t>(ids.size()) > context.limits.max_prompt_tokens) {
    Violations violations;
    violations.Add(prefix + "input", StrCat("is ", ids.size(), " tokens long; allowed are at most ",
                                            context.limits.max_prompt_tokens, " (--max_prompt_tokens)"));
    return violations.ToStatus();
  }
  return ids;
}

// The session to write, as it is now. One that the turn is to make is empty, and has no id if the server draws it.
absl::StatusOr<SessionInfo> LookAtSession(ServiceContext* context, const v1::GenerationSpec& spec) {
  SessionInfo absent;
  if (!spec.session().empty()) absent.id = *ParseSessionName(spec.session());
  if (absent.id.empty()) return absent;
  absl::StatusOr<SessionInfo> found = context->sessions->Get(absent.id);
  return absl::IsNotFound(found.status()) && spec.create_session() ? absent : found;
}

// The turn and the ids of the prompt. Whether text begins with bos, and whether there must be any, depends on the
// session being empty; where another request or a rollback was faster, session and prompt are looked at again.
absl::StatusOr<BeginTurnResult> BeginTurn(ServiceContext* context, const v1::GenerationSpec& spec, uint64_t seed,
                                          absl::Time deadline, const std::function<bool()>& abandoned,
                                          std::vector<int32_t>* prompt) {
  ASSIGN_OR_RETURN(SessionInfo session, LookAtSession(context, spec));
  for (int attempt = 1;; ++attempt) {
    TurnSpec turn;
    turn.session_id = session.id;
    turn.create = spec.create_session();
    turn.request_id = spec.request_id();
    turn.semantic_hash = SemanticHash(spec);
    turn.params = spec.SerializeAsString();
    if (spec.has_expected_position()) turn.expected_position = spec.expected_position();
    if (spec.has_etag()) turn.etag = spec.etag();
    turn.seed = seed;
    turn.durability = ToDurability(spec.durability());
    turn.wait = spec.wait_for_session();
    turn.deadline = deadline;
    turn.abandoned = abandoned;
    ASSIGN_OR_RETURN(*prompt, EncodeInput(*context, spec, session.position == 0));
    turn.prompt = *prompt;
    if (prompt->empty() && session.position == 0) {
      Violations violations;
      const std::string which = session.id.empty() ? "a new session" : StrCat("session '", session.id, "'");
      violations.Add("spec.input",
                     StrCat("has no tokens, and ", which, " is empty; at least one token is needed to go on from"));
      return violations.ToStatus();
    }
    turn.empty_session = session.position == 0;
    absl::StatusOr<BeginTurnResult> begun = context->sessions->BeginTurn(std::move(turn));
    if (!absl::IsAborted(begun.status()) || attempt == kStartAttempts) return begun;
    ASSIGN_OR_RETURN(SessionInfo now, LookAtSession(context, spec));
    if ((now.position == 0) == (session.position == 0)) return begun;
    session = std::move(now);
  }
}

absl::StatusOr<std::shared_ptr<GenerationEvents>> Start(ServiceContext* context, const v1::GenerationSpec& spec,
                                                        absl::Time arrival, absl::Time deadline,
                                                        const std::function<bool()>& abandoned) {
  RETURN_IF_ERROR(CheckServing(*context));
  Violations violations;
  ValidateSpec(spec, context->limits, &violations);
  RETURN_IF_ERROR(violations.ToStatus());
  if (abandoned()) return absl::CancelledError("the client went away before its request began");
  const bool has_session = !spec.session().empty() || spec.create_session();
  // Looked at before the prompt goes to the log; the engine has the last word.
  if (context->engine->stats().waiting >= context->max_queue) {
    return WithDetails(absl::UnavailableError(StrCat("the engine's queue is full (", context->max_queue, " requests)")),
                       {.reason = "QUEUE_FULL", .retry_delay = absl::Seconds(1)});
  }

  const uint64_t seed = spec.sampling().has_seed() ? static_cast<uint64_t>(spec.sampling().seed()) : DrawSeed();
  GenerationRun::Start start{.spec = spec, .arrival = arrival};
  start.stop_tokens = StopTokens(*context, spec);
  start.max_tokens = MaxTokens(*context, spec);
  start.seed = seed;
  EngineRequest request;
  if (has_session) {
    ASSIGN_OR_RETURN(BeginTurnResult begun, BeginTurn(context, spec, seed, deadline, abandoned, &start.prompt));
    if (begun.replay) {
      return ReplayGeneration(context, spec, *ParseSessionName(spec.session()), *begun.replay, std::nullopt);
    }
    start.turn = std::move(begun.turn);
    request.session_key = start.turn->session().key;
    request.head = start.turn->session().position;
    request.recent.assign(start.turn->recent().begin(), start.turn->recent().end());
  } else {
    ASSIGN_OR_RETURN(start.prompt, EncodeInput(*context, spec, true));
    if (start.prompt.empty()) {
      violations.Add("spec.input", "has no tokens; without a session to go on with at least one is needed");
      return violations.ToStatus();
    }
  }
  request.prompt = start.prompt;
  request.sampling = MakeSampling(spec, start.stop_tokens, seed);
  request.max_tokens = start.max_tokens;
  request.stop_tokens = start.stop_tokens;
  request.stop_strings = {spec.stopping().stop_strings().begin(), spec.stopping().stop_strings().end()};
  if (spec.output().has_prompt_logprobs()) {
    request.prompt_logprobs = spec.output().prompt_logprobs();
    request.score_first = request.head >= 1;
  }
  // A generation that goes on without its client is not bound by the client's deadline.
  if (spec.on_disconnect() != v1::DISCONNECT_POLICY_CONTINUE) request.deadline = deadline;
  if (spec.has_max_duration()) request.max_duration = *FromProto(spec.max_duration());
  request.priority = spec.priority();

  return SubmitRun(context, std::make_shared<GenerationRun>(context, std::move(start)), std::move(request));
}

}  // namespace

absl::Status CheckServing(const ServiceContext& context) {
  if (!context.draining.load(std::memory_order_relaxed)) return context.engine->status();
  return WithDetails(absl::UnavailableError("the server is going down; try again, on another one if there is one"),
                     {.reason = "DRAINING", .retry_delay = absl::Seconds(1)});
}

void NoteRejection(ServiceContext* context, const absl::Status& status) {
  const std::string reason = GetDetails(status).reason;
  context->metrics->Add(Metric::kRequestsRejectedTotal, 1,
                        {reason.empty() ? absl::StatusCodeToString(status.code()) : reason});
}

absl::StatusOr<std::vector<int32_t>> EncodeInput(const ServiceContext& context, const v1::GenerationSpec& spec,
                                                 bool at_start) {
  return Encode(context, spec, at_start, "spec.");
}

absl::StatusOr<std::vector<int32_t>> EncodeInput(const ServiceContext& context, const v1::ScoreRequest& request,
                                                 bool at_start) {
  return Encode(context, request, at_start, "");
}

std::string SemanticHash(const v1::GenerationSpec& spec) {
  v1::GenerationSpec meaning = spec;
  meaning.DiscardUnknownFields();
  meaning.clear_request_id();
  meaning.clear_expected_position();
  meaning.clear_etag();
  meaning.clear_wait_for_session();
  meaning.clear_output();
  meaning.clear_on_disconnect();
  meaning.clear_priority();
  meaning.clear_durability();
  const std::string bytes = meaning.SerializeAsString();
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  return std::string(reinterpret_cast<const char*>(canonical.digest), sizeof(canonical.digest));
}

absl::StatusOr<std::shared_ptr<GenerationEvents>> StartGeneration(ServiceContext* context,
                                                                  const v1::GenerationSpec& spec, absl::Time arrival,
                                                                  absl::Time deadline,
                                                                  const std::function<bool()>& abandoned) {
  absl::StatusOr<std::shared_ptr<GenerationEvents>> started = Start(context, spec, arrival, deadline, abandoned);
  if (!started.ok()) NoteRejection(context, started.status());
  return started;
}

}  // namespace smt
