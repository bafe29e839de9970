// The life of a generation and the engine's side of it; the reader's is in generation_run_reader.cc, the end's in
// generation_run_end.cc.
#include "server/service/generation_run.h"

#include <algorithm>
#include <utility>

#include "server/service/generation_events.h"
#include "server/service/names.h"

namespace smt {
namespace {

constexpr absl::Duration kProgressInterval = absl::Seconds(1);

std::vector<std::string> StopStrings(const v1::GenerationSpec& spec) {
  return {spec.stopping().stop_strings().begin(), spec.stopping().stop_strings().end()};
}

}  // namespace

GenerationRun::GenerationRun(ServiceContext* context, Start start)
    : context_(context),
      spec_(std::move(start.spec)),
      prompt_(std::move(start.prompt)),
      stop_tokens_(std::move(start.stop_tokens)),
      arrival_(start.arrival),
      turn_(std::move(start.turn)),
      session_id_(turn_ ? turn_->session().id : ""),
      head_(start.resumed ? start.resumed->start_position
            : turn_       ? turn_->session().position
                          : 0),
      prompt_tokens_(start.resumed ? start.resumed->prompt_tokens : static_cast<int64_t>(prompt_.size())),
      resumed_ids_(start.resumed ? std::move(start.resumed->ids) : std::vector<int32_t>()),
      max_tokens_(start.max_tokens),
      piecewise_to_(start.resumed ? start.resumed->after.position : 0),
      assembler_(&context->codec->token_bytes(), StopStrings(spec_), spec_.stopping().min_tokens()),
      last_progress_(absl::Now()),
      last_tokens_(absl::Now()),
      digest_(turn_ ? turn_->session().branch : 0, spec_.request_id()),
      skip_(start.resumed ? std::optional(start.resumed->after) : std::nullopt, head_ + prompt_tokens_) {
  absl::MutexLock lock(&mu_);
  released_position_ = head_ + prompt_tokens_;
  log_position_ = released_position_ + static_cast<int64_t>(resumed_ids_.size());
  durable_position_ = turn_ ? turn_->durable_position() : 0;
  begun_ = turn_ == nullptr;
  v1::GenerationStarted& started = *events_.emplace_back().mutable_started();
  if (turn_) started.set_session(SessionName(session_id_));
  started.set_request_id(spec_.request_id());
  started.set_branch(turn_ ? turn_->session().branch : 0);
  started.set_start_position(head_);
  started.set_prompt_tokens(prompt_tokens_);
  started.set_seed(static_cast<int64_t>(start.seed));
  started.set_max_tokens(start.max_tokens);
  // What it says is so when it is told.
  const bool syncs = turn_ != nullptr && spec_.durability() != v1::DURABILITY_NONE;
  started.set_durable_position(syncs ? log_position_ : durable_position_);
  started.set_digest(digest_.bytes());
  if (spec_.output().has_prompt_logprobs() && head_ == 0 && !prompt_.empty()) {
    // Nothing precedes a session's first id, so the engine says nothing of it; the list has one entry for each id.
    v1::PromptLogprobs* first = events_.emplace_back().mutable_prompt_logprobs();
    first->set_first_position(1);
    *first->add_logprobs() = ToProto(*context_->codec, prompt_[0], nullptr);
  }
  if (spec_.output().echo()) AppendEcho(*context_->codec, prompt_, head_, &events_);
  context_->metrics->Add(Metric::kPromptTokensTotal, static_cast<double>(prompt_.size()));
  if (start.resumed) Recall();
}

// Goes through what was generated before as it was gone through then, so that what is held back, the digest and the
// pieces are the same.
void GenerationRun::Recall() {
  skip_.Wants(released_position_, digest_);
  // The engine counts from here on, the reader from further back.
  consumed.store(-static_cast<int64_t>(resumed_ids_.size()), std::memory_order_relaxed);
  int64_t position = released_position_;
  for (const int32_t id : resumed_ids_) {
    TokenOutput token;
    token.id = id;
    token.position = ++position;
    TextAssembler::Released released;
    if (!IsStopToken(id)) assembler_.Append(std::move(token), &released);
    if (!released.empty()) Release(std::move(released));
    if (chunk_ && static_cast<size_t>(chunk_->token_ids_size()) >= kMostIdsInMessage) {
      *events_.emplace_back().mutable_chunk() = *std::exchange(chunk_, std::nullopt);
    }
  }
}

absl::Status GenerationRun::resume_status() const {
  absl::MutexLock lock(&mu_);
  return skip_.Check(session_id_);
}

std::optional<FinishInfo> GenerationRun::EndOfResumed() const {
  FinishInfo info;
  info.position = log_position();
  info.resident = true;
  if (!resumed_ids_.empty() && IsStopToken(resumed_ids_.back())) {
    info.reason = FinishReason::kStopToken;
    info.stop_token = resumed_ids_.back();
  } else if (assembler_.found_stop_string()) {
    info.reason = FinishReason::kStopString;
    info.stop_string = assembler_.stop_string();
  } else if (static_cast<int64_t>(resumed_ids_.size()) >= max_tokens_) {
    info.reason = FinishReason::kMaxTokens;
  } else {
    return std::nullopt;
  }
  return info;
}

GenerationRun::~GenerationRun() = default;

void GenerationRun::SetHandle(RequestHandle handle) {
  bool cancel;
  {
    absl::MutexLock lock(&mu_);
    handle_ = handle;
    cancel = cancelled_ || parked_ || (disconnected_ && DisconnectPolicy() != v1::DISCONNECT_POLICY_CONTINUE) ||
             (turn_ && !turn_->status().ok());
  }
  if (cancel) context_->engine->Cancel(handle);
}

absl::Status GenerationRun::Abandon(const absl::Status& refusal) {
  absl::Status status =
      BrokenOffStatus({.reason = FinishReason::kError, .status = refusal, .position = log_position()});
  if (turn_) {
    if (absl::Status begun = turn_->AwaitBegun(); !begun.ok()) status = std::move(begun);
    turn_->Finish(RequestState::kInterrupted, "",
                  [self = shared_from_this(), status](absl::Status, int64_t) { self->End(std::nullopt, status); });
  } else {
    End(std::nullopt, status);
  }
  return status;
}

int64_t GenerationRun::log_position() const {
  absl::MutexLock lock(&mu_);
  return begun_ ? log_position_ : head_ + prompt_tokens_ + static_cast<int64_t>(resumed_ids_.size());
}

void GenerationRun::Cancel(std::function<void()> done) { EndEarly(&GenerationRun::cancelled_, std::move(done)); }

void GenerationRun::Park(std::function<void()> done) { EndEarly(&GenerationRun::parked_, std::move(done)); }

void GenerationRun::EndEarly(bool GenerationRun::*how, std::function<void()> done) {
  std::optional<RequestHandle> handle;
  {
    absl::MutexLock lock(&mu_);
    if (!ended_) {
      this->*how = true;
      handle = handle_;
      on_end_.push_back(std::move(done));
      done = nullptr;
    }
  }
  if (handle) context_->engine->Cancel(*handle);
  if (done) done();
}

void GenerationRun::OnIngested(int64_t done, int64_t total) {
  const absl::Time now = absl::Now();
  if (now - last_progress_ < kProgressInterval || done >= total) return;
  last_progress_ = now;
  {
    absl::MutexLock lock(&mu_);
    progress_.emplace();
    progress_->set_ingested_tokens(done);
    progress_->set_total_tokens(total);
  }
  Notify();
}

void GenerationRun::OnPromptLogprobs(int64_t first_position, std::vector<TokenLogprobs> logprobs) {
  std::deque<v1::GenerationEvent> events;
  AppendPromptLogprobs(*context_->codec, prompt_, head_, first_position, logprobs, &events);
  {
    absl::MutexLock lock(&mu_);
    if (!disconnected_) std::move(events.begin(), events.end(), std::back_inserter(events_));
  }
  Notify();
}

bool GenerationRun::IsStopToken(int32_t id) const {
  return std::find(stop_tokens_.begin(), stop_tokens_.end(), id) != stop_tokens_.end();
}

void GenerationRun::OnTokens(std::span<const TokenOutput> tokens) {
  if (tokens.empty()) return;
  const absl::Time now = absl::Now();
  // Tokens that come together share the time since the ones before; the first of all has none before it.
  const bool first = first_token_ == absl::InfiniteFuture();
  if (first) first_token_ = last_tokens_ = now;
  const absl::Duration each = (now - last_tokens_) / static_cast<int64_t>(tokens.size());
  for (size_t i = first ? 1 : 0; i < tokens.size(); ++i) {
    context_->metrics->Observe(Metric::kInterTokenLatencySeconds, each);
  }
  last_tokens_ = now;
  if (turn_) {
    std::vector<int32_t> ids;
    ids.reserve(tokens.size());
    for (const TokenOutput& token : tokens) ids.push_back(token.id);
    turn_->Append(ids);
  }
  std::vector<TextAssembler::Released> released(1);
  for (const TokenOutput& token : tokens) {
    // Up to the point where a resumed stream's reader stands, pieces are as small as they can have been. An id is
    // released later than it comes, perhaps together with the one after that point.
    if (assembler_.released_position() <= piecewise_to_) released.emplace_back();
    if (!IsStopToken(token.id)) assembler_.Append(token, &released.back());
  }
  const int64_t durable = turn_ ? turn_->durable_position() : 0;
  bool sendable = false, diverged = false;
  std::optional<RequestHandle> wake;
  {
    absl::MutexLock lock(&mu_);
    log_position_ = tokens.back().position;
    durable_position_ = std::max(durable_position_, durable);
    // Nobody reads (CONTINUE): the log keeps the tokens, and nothing may hold the engine back.
    if (disconnected_) Consume(static_cast<int64_t>(tokens.size()));
    for (TextAssembler::Released& piece : released) {
      if (!piece.empty()) Release(std::move(piece));
    }
    sendable = chunk_.has_value();  // with TOKEN it waits for the disk
    if (unwoken_tokens_ >= kWakeInterval) {
      unwoken_tokens_ = 0;
      wake = handle_;
    }
    diverged = !skip_.Check(session_id_).ok();
    if (diverged) wake = handle_;
  }
  if (diverged && wake) context_->engine->Cancel(*wake);
  if (wake) context_->engine->Wake(*wake);
  if (sendable) Notify();
}

void GenerationRun::Consume(int64_t tokens) {
  consumed.fetch_add(tokens, std::memory_order_relaxed);
  unwoken_tokens_ += tokens;
}

void GenerationRun::Release(TextAssembler::Released released) {
  for (const TokenOutput& token : released.tokens) digest_.Add(token.id);
  if (released.tokens.empty()) {
    digest_.AddTail();
  } else {
    released_position_ = released.tokens.back().position;
  }
  if (!skip_.Wants(released_position_, digest_) || !skip_.Check(session_id_).ok()) {
    if (!disconnected_) Consume(static_cast<int64_t>(released.tokens.size()));
    return;
  }
  if (disconnected_) return;
  v1::GenerationChunk& piece = pieces_.emplace_back();
  for (const TokenOutput& token : released.tokens) {
    piece.add_token_ids(token.id);
    if (token.has_logprobs) *piece.add_logprobs() = ToProto(*context_->codec, token.id, &token.logprobs);
  }
  piece.set_text(std::move(released.text));
  piece.set_position(released_position_);
  piece.set_digest(digest_.bytes());
  Promote();
}

void GenerationRun::Promote() {
  if (withheld_) return;
  while (!pieces_.empty() && (!sends_durable() || pieces_.front().position() <= durable_position_)) {
    v1::GenerationChunk& piece = pieces_.front();
    if (!chunk_) {
      chunk_ = std::move(piece);
    } else {
      chunk_->mutable_token_ids()->MergeFrom(piece.token_ids());
      chunk_->mutable_logprobs()->MergeFrom(piece.logprobs());
      chunk_->mutable_text()->append(piece.text());
      chunk_->set_position(piece.position());
      chunk_->set_digest(piece.digest());
    }
    pieces_.pop_front();
  }
}

void GenerationRun::WatchDurability() {
  turn_->Watch([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->OnDurable();
  });
  OnDurable();
}

void GenerationRun::OnDurable() {
  std::optional<RequestHandle> failed;
  bool sendable = false;
  {
    absl::MutexLock lock(&mu_);
    durable_position_ = std::max(durable_position_, turn_->durable_position());
    Promote();
    const bool begins = !begun_ && turn_->begun();
    begun_ |= begins;
    sendable = begins || chunk_.has_value();
    if (!turn_->status().ok()) failed = handle_;  // nothing more could be written
  }
  if (turn_->asked_to_cancel()) Cancel([] {});
  if (turn_->asked_to_end()) Park([] {});
  if (failed) context_->engine->Cancel(*failed);
  if (sendable) Notify();
}

void GenerationRun::OnSnapshot(int64_t position, std::shared_ptr<const StateBuffer> state) {
  if (turn_) turn_->Snapshot(position, std::move(state));
}

}  // namespace smt
