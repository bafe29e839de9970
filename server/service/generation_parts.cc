#include "server/service/generation_parts.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/digest.h"
#include "server/service/generation_events.h"
#include "server/service/names.h"
#include "server/service/stored_events.h"
#include "server/service/stream_skip.h"
#include "server/service/text_assembler.h"
#include "server/service/violations.h"

namespace smt {

std::shared_ptr<const SamplingParams> MakeSampling(const v1::GenerationSpec& spec,
                                                   const std::vector<int32_t>& stop_tokens, uint64_t seed) {
  auto params = std::make_shared<SamplingParams>();
  const v1::SamplingOptions& options = spec.sampling();
  if (options.has_temperature()) params->temperature = options.temperature();
  params->top_k = options.top_k();
  if (options.has_top_p()) params->top_p = options.top_p();
  params->min_p = options.min_p();
  if (options.has_repetition_penalty()) params->repetition_penalty = options.repetition_penalty();
  params->presence_penalty = options.presence_penalty();
  params->frequency_penalty = options.frequency_penalty();
  for (const v1::LogitBias& bias : options.logit_bias()) params->logit_bias.emplace_back(bias.token_id(), bias.bias());
  params->seed = seed;
  params->min_tokens = spec.stopping().min_tokens();
  params->masked_until_min_tokens = stop_tokens;
  if (spec.output().has_top_logprobs()) params->top_logprobs = spec.output().top_logprobs();
  return params;
}

std::vector<int32_t> StopTokens(const ServiceContext& context, const v1::GenerationSpec& spec) {
  std::vector<int32_t> ids(spec.stopping().stop_token_ids().begin(), spec.stopping().stop_token_ids().end());
  const bool has_eos = context.eos && std::find(ids.begin(), ids.end(), *context.eos) != ids.end();
  if (context.eos && !has_eos && !spec.stopping().ignore_eos()) ids.push_back(*context.eos);
  return ids;
}

int64_t MaxTokens(const ServiceContext& context, const v1::GenerationSpec& spec) {
  return spec.stopping().has_max_tokens() ? spec.stopping().max_tokens() : context.limits.default_max_tokens;
}

absl::StatusOr<std::shared_ptr<GenerationEvents>> SubmitRun(ServiceContext* context, std::shared_ptr<GenerationRun> run,
                                                            EngineRequest request) {
  if (Turn* turn = run->turn()) {
    request.restore = [run, turn, metrics = context->metrics]() -> absl::StatusOr<RestoredState> {
      const absl::Time began = absl::Now();
      absl::StatusOr<RestoredState> state = turn->Restore();
      metrics->Add(Metric::kSessionRestoresTotal, 1, {state.ok() ? state->tier : "store", state.ok() ? "ok" : "error"});
      if (state.ok()) {
        metrics->Observe(Metric::kSessionRestoreDurationSeconds, absl::Now() - began, {state->tier});
        metrics->Add(Metric::kSnapshotCorruptionTotal, state->damaged_snapshots);
      }
      return state;
    };
    run->WatchDurability();
    if (!run->request_id().empty()) context->registry.Add({turn->session().id, run->request_id()}, run);
  }
  request.sink = run;
  const absl::StatusOr<RequestHandle> handle = context->engine->Submit(std::move(request));
  if (handle.ok()) {
    run->SetHandle(*handle);
  } else {
    return run->Abandon(handle.status());
  }
  return run;
}

absl::Status CheckOnBranch(ServiceContext* context, const std::string& session_id, const RequestRecord& record) {
  ASSIGN_OR_RETURN(const SessionInfo session, context->sessions->Get(session_id));
  if (session.branch == record.branch) return absl::OkStatus();
  const std::string message =
      StrCat("request ", ShowValue(record.request_id), " was made on branch ", record.branch, " of session '",
             session_id, "', which has been rolled back since and is on branch ", session.branch);
  return WithDetails(absl::FailedPreconditionError(message),
                     {.reason = "SUPERSEDED",
                      .metadata = {{"position", StrCat(session.position)}, {"branch", StrCat(session.branch)}},
                      .preconditions = {{"SUPERSEDED", SessionName(session_id), message}}});
}

absl::StatusOr<std::shared_ptr<GenerationEvents>> ReplayGeneration(ServiceContext* context,
                                                                   const v1::GenerationSpec& spec,
                                                                   const std::string& session_id,
                                                                   const RequestRecord& record,
                                                                   const std::optional<StreamPoint>& after) {
  const bool has_outcome = record.state == RequestState::kFinished || record.state == RequestState::kCancelled;
  v1::GenerationFinished finished;
  if (!has_outcome || !finished.ParseFromString(record.outcome)) {
    const bool parked = record.state == RequestState::kInterrupted;
    if (parked) RETURN_IF_ERROR(CheckOnBranch(context, session_id, record));
    return WithDetails(
        absl::FailedPreconditionError(
            StrCat("request ", ShowValue(record.request_id), parked ? " was interrupted" : " failed", " at position ",
                   record.end_position,
                   parked ? "; ResumeGenerate goes on with it" : "; go on from there with a new request_id")),
        {.reason = parked ? "REQUEST_PARKED" : "REQUEST_FAILED",
         .metadata = {{"position", StrCat(record.end_position)}},
         .preconditions = {{"REQUEST_STATE", SessionName(session_id), parked ? "interrupted" : "failed"}}});
  }
  std::deque<v1::GenerationEvent> events;
  RunningDigest digest(record.branch, record.request_id);
  v1::GenerationStarted* started = events.emplace_back().mutable_started();
  started->set_session(SessionName(session_id));
  started->set_request_id(record.request_id);
  started->set_branch(record.branch);
  started->set_start_position(record.start_position);
  started->set_prompt_tokens(record.prompt_tokens);
  started->set_seed(static_cast<int64_t>(record.seed));
  started->set_max_tokens(MaxTokens(*context, spec));
  started->set_durable_position(record.end_position);
  started->set_digest(digest.bytes());
  started->set_replayed(true);

  const int64_t first = record.start_position + record.prompt_tokens + 1;
  StreamSkip skip(after, first - 1);
  skip.Wants(first - 1, digest);
  if (spec.output().echo() && record.prompt_tokens > 0 && !after) {
    ASSIGN_OR_RETURN(
        const std::vector<int32_t> prompt,
        context->sessions->ReadRequestLog(session_id, record.branch, record.start_position + 1, first - 1));
    AppendEcho(*context->codec, prompt, record.start_position, &events);
  }
  if (finished.position() >= first) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                     context->sessions->ReadRequestLog(session_id, record.branch, first, finished.position()));
    const std::vector<int32_t> stop_tokens = StopTokens(*context, spec);
    TextAssembler assembler(&context->codec->token_bytes(),
                            {spec.stopping().stop_strings().begin(), spec.stopping().stop_strings().end()},
                            spec.stopping().min_tokens());
    TextAssembler::Released released;
    const auto position = [&] { return std::max(assembler.released_position(), first - 1); };
    const auto flush = [&] {
      if (released.empty()) return;
      v1::GenerationChunk* chunk = events.emplace_back().mutable_chunk();
      for (const TokenOutput& token : released.tokens) chunk->add_token_ids(token.id);
      chunk->set_text(std::move(released.text));
      chunk->set_position(position());
      chunk->set_durable_position(record.end_position);
      chunk->set_digest(digest.bytes());
      released = {};
    };
    const auto take = [&](TextAssembler::Released one) {
      for (const TokenOutput& token : one.tokens) digest.Add(token.id);
      if (one.tokens.empty()) digest.AddTail();
      if (!skip.Wants(position(), digest)) return;
      std::move(one.tokens.begin(), one.tokens.end(), std::back_inserter(released.tokens));
      released.text += one.text;
    };
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool stop = std::find(stop_tokens.begin(), stop_tokens.end(), ids[i]) != stop_tokens.end();
      if (stop) continue;
      TokenOutput token;
      token.id = ids[i];
      token.position = first + static_cast<int64_t>(i);
      TextAssembler::Released one;
      assembler.Append(std::move(token), &one);
      if (!one.empty()) take(std::move(one));
      if (released.tokens.size() >= kMostIdsInMessage) flush();
    }
    TextAssembler::Released rest;
    assembler.Finish(&rest);
    if (!rest.empty()) take(std::move(rest));
    flush();
  }
  RETURN_IF_ERROR(skip.CheckEnd(session_id));
  finished.set_durable_position(record.end_position);
  *events.emplace_back().mutable_finished() = std::move(finished);
  return std::make_shared<StoredEvents<v1::GenerationEvent>>(std::move(events));
}

}  // namespace smt
