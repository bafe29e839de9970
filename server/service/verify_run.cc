// One verification is a chain of ephemeral engine requests, each over a piece of the log:
//
//   pool thread       ReadLog, Submit                                   Submit        …   Answer
//   delivery thread                    OnSnapshot*, OnFinished ──► pool      …   OnFinished ──► pool
//
// A piece begins from the state at the end of the one before, so that memory is bounded whatever the log's length: one
// piece of ids, one state, and of the states to compare with only their hashes. Between pieces the slot is free, and
// pieces wait behind every other request, so that a verification takes what nobody else wants.
#include "server/service/verify_run.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/escaping.h"
#include "absl/synchronization/mutex.h"
#include "model/base/sha256.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/names.h"
#include "server/service/resident_state.h"
#include "server/service/session_messages.h"
#include "server/service/session_service.h"
#include "server/service/validators.h"

namespace smt {
namespace {

constexpr int64_t kPieceIds = int64_t{1} << 16;
constexpr int32_t kMaxVerifications = 2;  // at a time: they take slots
constexpr absl::Duration kProgressInterval = absl::Seconds(1);
constexpr absl::Duration kPatienceForTheEngine = absl::Seconds(2);

struct StateHash {
  uint64_t low = 0, high = 0;
  friend bool operator==(const StateHash&, const StateHash&) = default;
};

StateHash HashOf(const StateBuffer& state) {
  const XXH128_hash_t hash = XXH3_128bits(state.span().data(), state.size());
  return {hash.low64, hash.high64};
}

// A state that is kept of the session.
struct Kept {
  int64_t position = 0;
  std::optional<StateHash> hash;  // nothing: its bytes are damaged
};

struct Comparison {
  std::vector<Kept> states;  // by position
  bool skipped = false;      // there are others, of other numerics
};

// A place among those that run at a time, until destruction.
class Place {
 public:
  static std::unique_ptr<Place> Take(ServiceContext* context) {
    auto place = std::unique_ptr<Place>(new Place(context));
    return context->verifications.fetch_add(1) < kMaxVerifications ? std::move(place) : nullptr;
  }
  ~Place() { --context_->verifications; }

 private:
  explicit Place(ServiceContext* context) : context_(context) {}
  ServiceContext* const context_;
};

class VerifyRun final : public GenerationSink, public VerifyEvents, public std::enable_shared_from_this<VerifyRun> {
 public:
  VerifyRun(ServiceContext* context, std::unique_ptr<Place> place, SessionInfo session, Comparison comparison,
            absl::Time deadline)
      : context_(context),
        place_(std::move(place)),
        session_(std::move(session)),
        comparison_(std::move(comparison)),
        deadline_(deadline) {
    ShowProgress(0);
  }

  // Pool thread: the next piece, or the answer.
  void GoOn() {
    if (disconnected()) return End(absl::CancelledError("the client went away"));
    if (at_ == session_.position) return Answer();
    if (const absl::Status status = SubmitPiece(); !status.ok()) End(status);
  }

  // GenerationSink. Calls for one piece come before the next is submitted.
  void OnIngested(int64_t done, int64_t) override {
    if (absl::Now() - shown_ < kProgressInterval) return;
    ShowProgress(at_ + done);
    Notify();
  }
  void OnTokens(std::span<const TokenOutput>) override {}
  void OnSnapshot(int64_t position, std::shared_ptr<const StateBuffer> state) override {
    const auto before = [](const Kept& kept, int64_t position) { return kept.position < position; };
    const std::vector<Kept>& states = comparison_.states;
    auto kept = std::lower_bound(states.begin(), states.end(), position, before);
    if (kept != states.end() && kept->position == position) {
      const StateHash hash = HashOf(*state);
      for (; kept != states.end() && kept->position == position; ++kept) {
        if (kept->hash != hash && first_difference_ == 0) first_difference_ = position;
      }
    }
    if (position == piece_end_) state_ = std::move(state);
  }
  void OnFinished(const FinishInfo& info) override {
    if (info.reason != FinishReason::kMaxTokens) return End(StatusOf(info));
    if (state_ == nullptr) return End(absl::InternalError("the engine gave no state at the end of a piece"));
    at_ = piece_end_;
    if (!context_->pool->TrySchedule([self = shared_from_this()] { self->GoOn(); })) End(PoolFull());
  }

  // VerifyEvents
  void SetNotify(std::function<void()> notify) override {
    {
      absl::MutexLock lock(&mu_);
      notify_ = notify;
    }
    notify();
  }
  TakeResult Take(v1::VerifySessionResponse* message) override {
    absl::MutexLock lock(&mu_);
    if (!message_) return ended_ ? TakeResult::kEnd : TakeResult::kNothing;
    *message = *std::exchange(message_, std::nullopt);
    return TakeResult::kMessage;
  }
  absl::Status end_status() const override {
    absl::MutexLock lock(&mu_);
    return end_status_;
  }
  void OnDisconnect() override {
    std::optional<RequestHandle> handle;
    {
      absl::MutexLock lock(&mu_);
      disconnected_ = true;
      notify_ = nullptr;
      handle = handle_;
    }
    if (handle) context_->engine->Cancel(*handle);
  }

 private:
  absl::Status SubmitPiece() {
    const int64_t first = at_ + 1, last = std::min(session_.position, at_ + kPieceIds);
    absl::StatusOr<std::vector<int32_t>> ids = context_->sessions->ReadLog(session_.id, first, last);
    // A session that was rolled back, or made anew, has another log: what was read may be of that, or not there.
    ASSIGN_OR_RETURN(const SessionInfo now, context_->sessions->Get(session_.id));
    if (now.key != session_.key) {
      return WithDetails(absl::AbortedError(StrCat("session '", session_.id,
                                                   "' was rolled back, or deleted and made "
                                                   "again, while it was verified")),
                         {.reason = "SESSION_CHANGED"});
    }
    RETURN_IF_ERROR(ids.status());
    EngineRequest request;
    request.head = at_;
    request.prompt = *std::move(ids);
    request.restore = [state = state_, position = at_]() -> absl::StatusOr<RestoredState> {
      return RestoredState{.state = state, .position = position};
    };
    for (const Kept& kept : comparison_.states) {
      const bool asked = !request.save_at.empty() && request.save_at.back() == kept.position;
      if (kept.position >= first && kept.position <= last && !asked) request.save_at.push_back(kept.position);
    }
    if (request.save_at.empty() || request.save_at.back() != last) request.save_at.push_back(last);
    request.deadline = deadline_;
    request.priority = std::numeric_limits<int32_t>::min();
    request.sink = shared_from_this();
    state_ = nullptr;
    piece_end_ = last;
    ASSIGN_OR_RETURN(const RequestHandle handle, context_->engine->Submit(std::move(request)));
    bool cancel;
    {
      absl::MutexLock lock(&mu_);
      handle_ = std::max(handle_, std::optional(handle));  // the next piece may have been faster than this
      cancel = disconnected_;
    }
    if (cancel) context_->engine->Cancel(handle);
    return absl::OkStatus();
  }

  void Answer() {
    v1::VerifySessionResponse answer;
    answer.set_verified_tokens(at_);
    answer.set_total_tokens(session_.position);
    answer.set_first_difference(first_difference_);
    if (first_difference_ > 0) {
      answer.set_result(v1::VERIFY_RESULT_DIFFERENT);
    } else if (comparison_.states.empty() && comparison_.skipped) {
      answer.set_result(v1::VERIFY_RESULT_LOG_ONLY);
    } else {
      answer.set_result(v1::VERIFY_RESULT_IDENTICAL);
    }
    Sha256 sha;
    if (state_ != nullptr) {
      sha.Add({reinterpret_cast<const char*>(state_->span().data()), state_->size()});
    } else {  // of an empty session
      sha.Add(std::string(static_cast<size_t>(context_->engine->info().state_bytes), '\0'));
    }
    answer.set_state_digest(absl::HexStringToBytes(sha.HexDigest()));
    {
      absl::MutexLock lock(&mu_);
      message_ = std::move(answer);
    }
    End(absl::OkStatus());
  }

  static absl::Status StatusOf(const FinishInfo& info) {
    switch (info.reason) {
      case FinishReason::kDraining:
        return WithDetails(absl::UnavailableError("the server is going down"),
                           {.reason = "DRAINING", .retry_delay = absl::Seconds(1)});
      case FinishReason::kDeadlineExceeded:
        return absl::DeadlineExceededError("the call's deadline passed before the session was verified");
      case FinishReason::kCancelled:
        return absl::CancelledError("the client went away");
      default:
        return info.status.ok() ? absl::InternalError("the engine gave no reason") : info.status;
    }
  }

  bool disconnected() const {
    absl::MutexLock lock(&mu_);
    return disconnected_;
  }

  void ShowProgress(int64_t verified) {
    shown_ = absl::Now();
    v1::VerifySessionResponse progress;
    progress.set_verified_tokens(verified);
    progress.set_total_tokens(session_.position);
    absl::MutexLock lock(&mu_);
    message_ = std::move(progress);  // what a slow reader has not taken is replaced
  }

  void End(const absl::Status& status) {
    Counted(context_, "verify", status).IgnoreError();
    state_ = nullptr;
    place_ = nullptr;
    {
      absl::MutexLock lock(&mu_);
      ended_ = true;
      end_status_ = status;
    }
    Notify();
  }
  void Notify() {
    std::function<void()> notify;
    {
      absl::MutexLock lock(&mu_);
      notify = notify_;
    }
    if (notify) notify();
  }

  ServiceContext* const context_;
  // The chain's, one thread at a time.
  std::unique_ptr<Place> place_;
  const SessionInfo session_;
  const Comparison comparison_;
  const absl::Time deadline_;
  int64_t at_ = 0, piece_end_ = 0;            // ids absorbed; with the piece that runs
  std::shared_ptr<const StateBuffer> state_;  // at at_; null at 0
  int64_t first_difference_ = 0;
  absl::Time shown_;

  mutable absl::Mutex mu_;
  std::function<void()> notify_ ABSL_GUARDED_BY(mu_);
  std::optional<RequestHandle> handle_ ABSL_GUARDED_BY(mu_);
  std::optional<v1::VerifySessionResponse> message_ ABSL_GUARDED_BY(mu_);
  bool disconnected_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);
};

// Every state kept of the session up to its position, the one in its slot included.
absl::StatusOr<Comparison> StatesOf(ServiceContext* context, const SessionInfo& session,
                                    const ResidentState& resident) {
  const ExecutorInfo& info = context->engine->info();
  Comparison out;
  RETURN_IF_ERROR(context->sessions->VisitStates(session.id, [&](const SessionManager::KeptState& kept) {
    if (kept.position > session.position) return absl::OkStatus();  // it has gone on meanwhile
    // What came after a state of other numerics may have been made from it.
    const bool comparable = info.deterministic && !out.skipped && kept.numerics_id == info.numerics_id;
    if (kept.state == nullptr) {
      out.states.push_back({kept.position, std::nullopt});
    } else if (comparable) {
      out.states.push_back({kept.position, HashOf(*kept.state)});
    } else {
      out.skipped = true;
    }
    return absl::OkStatus();
  }));
  if (resident.state != nullptr && info.deterministic && !out.skipped) {
    out.states.push_back({resident.position, HashOf(*resident.state)});
  }
  out.skipped |= !info.deterministic;
  std::ranges::stable_sort(out.states, {}, [](const Kept& kept) { return kept.position; });
  return out;
}

}  // namespace

absl::StatusOr<std::shared_ptr<VerifyEvents>> StartVerify(ServiceContext* context,
                                                          const v1::VerifySessionRequest& request,
                                                          absl::Time deadline) {
  RETURN_IF_ERROR(CheckServing(*context));
  Violations violations;
  ValidateVerifySession(request, &violations);
  RETURN_IF_ERROR(violations.ToStatus());
  const std::string id = *ParseSessionName(request.name());
  ASSIGN_OR_RETURN(const SessionInfo before, context->sessions->Get(id));
  std::unique_ptr<Place> place = Place::Take(context);
  if (place == nullptr) {
    return WithDetails(absl::ResourceExhaustedError(
                           StrCat(kMaxVerifications, " sessions are being verified, as many as may be at a time")),
                       {.reason = "VERIFICATIONS_FULL", .retry_delay = absl::Seconds(10)});
  }
  // In this order the slot's state is not beyond the position.
  ResidentState resident = ReadResident(*context, before.key, kPatienceForTheEngine);
  ASSIGN_OR_RETURN(SessionInfo session, context->sessions->Get(id));
  if (session.key != before.key) resident = {};
  ASSIGN_OR_RETURN(Comparison comparison, StatesOf(context, session, resident));
  auto run =
      std::make_shared<VerifyRun>(context, std::move(place), std::move(session), std::move(comparison), deadline);
  run->GoOn();
  return run;
}

SessionServiceImpl::Stream* SessionServiceImpl::VerifySession(Call* call, const Bytes* bytes) {
  using Message = v1::VerifySessionResponse;
  auto stream = StreamCall<Message>::Make(RpcRecord(context_->metrics, kSessionService, "VerifySession"),
                                          [](const Message& message) { return Encode(message); });
  const bool scheduled =
      context_->pool->TrySchedule([context = context_, stream, bytes = *bytes, deadline = DeadlineOf(*call)] {
        v1::VerifySessionRequest request;
        if (absl::Status status = Decode(bytes, &request); !status.ok()) return stream->Fail(status);
        auto source = StartVerify(context, request, deadline);
        if (!source.ok()) return stream->Fail(Counted(context, "verify", source.status()));
        stream->Attach(*std::move(source));
      });
  if (!scheduled) stream->Fail(PoolFull());
  return stream.get();
}

}  // namespace smt
