// A turn read through whatever happens: calls follow each other until the stream has its end.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/e2e/chaos/player.h"

namespace smt::testing {

struct Player::Call {
  explicit Call(Transcript t) : transcript(std::move(t)) {}

  Transcript transcript;
  const v1::GenerationSpec* spec = nullptr;
  std::map<int64_t, Whim> whims;   // that are still to come
  std::vector<Transcript> others;  // what other readers, or this one before it forgot, were given
  absl::Time news = absl::Now();
  // Of the call that is being read.
  int slow_events = 0;
  absl::Duration away;   // how long the client stays away after it vanished
  bool forgets = false;  // and forgets the end of what it has
  std::thread second_reader, canceller, updater;
  v1::UpdateSessionRequest update;  // the last that updater sent
  std::vector<Transcript> second;   // one, while second_reader reads
  client::Error second_error;
  bool cancel_asked = false;
};

bool Player::PlayTurn(const Step& step, Entry* entry) {
  v1::GenerationSpec& spec = entry->spec;
  spec = step.spec;
  spec.set_session(client::SessionName(book_->session));
  spec.set_create_session(book_->head == 0);
  spec.set_request_id(absl::StrCat("r", ++book_->requests));
  spec.set_expected_position(book_->head);
  Call call(
      Transcript(findings_, absl::StrCat(book_->session, " ", spec.request_id()), book_->head, spec.durability()));
  call.spec = &spec;
  call.whims = step.whims;
  ++findings_->streams;
  const int64_t failures = Findings::Own();
  Next next = Next::kAgain;
  while (next == Next::kAgain) {
    const client::Error error = ReadOnce(step, spec, &call);
    next = Judge(error, spec, &call);
    if (next == Next::kDone && spec.durability() == v1::DURABILITY_NONE) next = Settle(spec, &call);
    if (next != Next::kAgain) break;
    if (absl::Now() - call.news > options_.patience) {
      findings_->Fail(findings_->errors, absl::StrCat(call.transcript.who(), ": is stuck at ",
                                                      call.transcript.position(), ": ", Show(error)));
      next = Next::kGiveUp;
    } else {
      Pause(error);
      if (dice_.Chance(0.3)) LookUp(spec, &call);
    }
  }
  // One that was lost with NONE can have ended elsewhere.
  const bool ends = spec.durability() != v1::DURABILITY_NONE;
  for (const Transcript& other : call.others) call.transcript.Compare(other, "another reader", ends);
  if (Findings::Own() != failures) {
    findings_->Say(absl::StrCat("  the request was ", Describe(spec), " of ", call.transcript.ids().size(), " ids"));
  }
  if (next == Next::kGiveUp) {
    // The undisturbed run tells whether what the client has is wrong, or what the server has now.
    if (call.transcript.known()) entry->transcript.push_back(std::move(call.transcript));
    return false;
  }
  // Whether it was carried out beside the stream is not known; once more does no harm.
  if (call.update.has_session() && !PlayUpdate(call.update)) return false;
  findings_->cancelled += call.transcript.cancelled() ? 1 : 0;
  book_->head = call.transcript.end().position();
  entry->transcript.push_back(std::move(call.transcript));
  return true;
}

// With NONE a turn whose end was told may be gone. A change that is acknowledged makes all before it durable; if the
// turn was lost until then, it is done again, and what it gave before must come again.
Player::Next Player::Settle(const v1::GenerationSpec& spec, Call* call) {
  if (!PlayUpdate(NewUpdate())) return Next::kGiveUp;
  v1::Session session;
  if (!Insist("GetSession", [&](bool) { return first_.GetSession(spec.session(), &session); })) return Next::kGiveUp;
  if (session.position() == call->transcript.end().position()) return Next::kDone;
  Forget(call);
  return Next::kAgain;
}

void Player::Forget(Call* call) {
  Transcript fresh(findings_, call->transcript.who(), book_->head, call->spec->durability());
  findings_->provisional += static_cast<int64_t>(call->transcript.ids().size());
  call->others.push_back(std::exchange(call->transcript, std::move(fresh)));
}

client::Error Player::ReadOnce(const Step& step, const v1::GenerationSpec& spec, Call* call) {
  call->slow_events = 0;
  call->away = absl::ZeroDuration();
  call->forgets = false;
  Transcript& transcript = call->transcript;
  const auto take = [&](const v1::GenerationEvent& event) { return OnEvent(event, call); };
  client::Error error;
  if (!transcript.known() && step.by_library) {
    error = first_.StreamThroughRestarts(spec, options_.patience, take);
  } else if (!transcript.known()) {
    error = first_.StreamGenerate(spec, take);
  } else {
    v1::ResumeGenerateRequest resume;
    resume.set_session(spec.session());
    resume.set_request_id(spec.request_id());
    resume.set_after_position(transcript.position());
    resume.set_after_digest(transcript.digest());
    error = first_.ResumeGenerate(resume, take);
  }
  StopHelpers(call);
  if (!call->second.empty()) {
    // The second reader has taken over: the first one's stream, which may have gone on for a moment, is history.
    call->others.push_back(std::exchange(transcript, std::move(call->second[0])));
    call->second.clear();
    if (error.reason != "TAKEN_OVER" && !error.ok())
      findings_->Note("a reader that was taken over had lost its stream");
    error = call->second_error;
  }
  if (call->forgets) {
    call->others.push_back(transcript);
    transcript.Rewind(dice_.Between(0, static_cast<int64_t>(transcript.ids().size())));
    ++findings_->rewound;
  }
  absl::SleepFor(call->away);
  return error;
}

bool Player::OnEvent(const v1::GenerationEvent& event, Call* call) {
  const bool resumes = call->transcript.known() && event.has_started();
  if (resumes) ++(event.started().replayed() ? findings_->replayed : findings_->resumed);
  call->transcript.Take(event);
  call->news = absl::Now();
  if (call->slow_events > 0) {
    --call->slow_events;
    absl::SleepFor(absl::Milliseconds(30));
  }
  while (!call->whims.empty() && event.has_chunk() &&
         static_cast<int64_t>(call->transcript.ids().size()) >= call->whims.begin()->first) {
    const Whim whim = call->whims.begin()->second;
    call->whims.erase(call->whims.begin());
    ActOn(whim, call);
  }
  return call->away == absl::ZeroDuration();
}

void Player::ActOn(Whim whim, Call* call) {
  switch (whim) {
    case Whim::kVanish:
    case Whim::kRewind:
      ++findings_->vanished;
      // Short enough that the server often has not noticed, long enough that CONTINUE often ends meanwhile.
      call->away = absl::Milliseconds(1) + dice_.Waiting(absl::Milliseconds(80));
      call->forgets |= whim == Whim::kRewind;
      return;
    case Whim::kSlow:
      call->slow_events = 15;
      return;
    case Whim::kCancel:
      if (call->canceller.joinable()) return;
      call->cancel_asked = true;
      call->canceller = std::thread([this, call] {
        v1::Generation generation;
        second_.CancelGeneration(call->spec->session(), call->spec->request_id(), &generation);
      });
      return;
    case Whim::kUpdate:
      if (call->updater.joinable()) return;
      call->update = NewUpdate();
      call->updater = std::thread([this, call] {
        v1::Session after;
        second_.UpdateSession(call->update, &after);
      });
      return;
    case Whim::kTakeOver:
      if (call->second_reader.joinable()) return;
      ++findings_->taken_over;
      call->second.push_back(call->transcript);
      call->second_reader = std::thread([this, call] {
        v1::ResumeGenerateRequest resume;
        resume.set_session(call->spec->session());
        resume.set_request_id(call->spec->request_id());
        resume.set_after_position(call->second[0].position());
        resume.set_after_digest(call->second[0].digest());
        call->second_error = second_.ResumeGenerate(resume, [&](const v1::GenerationEvent& event) {
          call->second[0].Take(event);
          return true;
        });
      });
      return;
  }
}

void Player::StopHelpers(Call* call) {
  if (call->canceller.joinable()) call->canceller.join();
  if (call->updater.joinable()) call->updater.join();
  if (call->second_reader.joinable()) call->second_reader.join();
}

void Player::LookUp(const v1::GenerationSpec& spec, Call* call) {
  Transcript& transcript = call->transcript;
  v1::Generation generation;
  if (!first_.GetGeneration(spec.session(), spec.request_id(), &generation).ok()) return;  // later
  if (!transcript.known()) transcript.Began(generation.start_position(), generation.prompt_tokens());
  if (generation.position() < transcript.durable()) {
    findings_->Fail(findings_->lost,
                    absl::StrCat(transcript.who(), ": stands at ", generation.position(), " though ",
                                 transcript.durable(), " was said to be durable"),
                    transcript.durable() - generation.position());
  }
}

Player::Next Player::Judge(const client::Error& error, const v1::GenerationSpec& spec, Call* call) {
  Transcript& transcript = call->transcript;
  if (transcript.finished()) {
    if (transcript.cut_short() && !MayBeCutShort(spec, *call)) {
      findings_->Fail(findings_->lost, transcript.who() + ": was cancelled though nobody asked for that");
    }
    return Next::kDone;
  }
  const bool left = call->away > absl::ZeroDuration();  // perhaps after the whole stream had come, unread
  if (Transient(error) || (error.ok() && left)) return Next::kAgain;
  const auto fail = [&](std::atomic<int64_t>& count) {
    findings_->Fail(count, absl::StrCat(transcript.who(), ": after position ", transcript.position(), ": ",
                                        error.ok() ? "the stream ends without `finished`" : Show(error)));
    return Next::kGiveUp;
  };
  switch (error.code) {
    case grpc::StatusCode::ABORTED:
      if (error.reason == "POSITION_MISMATCH" || error.reason == "ETAG_MISMATCH") return fail(findings_->diverged);
      if (!transcript.known()) LookUp(spec, call);  // an attempt before is still running
      return Next::kAgain;
    case grpc::StatusCode::FAILED_PRECONDITION:
      if (error.reason == "DIVERGED") ShowDivergence(spec, transcript);
      if (error.reason != "REQUEST_PARKED") return fail(findings_->diverged);
      if (!transcript.known()) LookUp(spec, call);
      return Next::kAgain;
    case grpc::StatusCode::OUT_OF_RANGE:
      return JudgeProvisional(error, spec, call);
    case grpc::StatusCode::NOT_FOUND:
      if (error.reason != "REQUEST_NOT_FOUND" || spec.durability() != v1::DURABILITY_NONE) return fail(findings_->lost);
      Forget(call);
      return Next::kAgain;
    default:
      return fail(findings_->errors);
  }
}

// Where what the server has now parts from what the client has. The undisturbed run tells which of them is wrong.
void Player::ShowDivergence(const v1::GenerationSpec& spec, const Transcript& had) {
  v1::ResumeGenerateRequest whole;
  whole.set_session(spec.session());
  whole.set_request_id(spec.request_id());
  whole.set_after_position(had.first());
  Transcript now(findings_, had.who() + " from its beginning", had.start_position(), spec.durability());
  now.Quiet();
  const client::Error error = first_.ResumeGenerate(whole, [&](const v1::GenerationEvent& event) {
    if (event.has_started()) {
      findings_->Say(absl::StrCat("  ", had.who(), ": resumed with ", event.started().ShortDebugString()));
    }
    now.Take(event);
    return now.position() < had.position();
  });
  findings_->Say(absl::StrCat("  ", had.who(), " read again: ", now.ids().size(), " ids, ", Show(error)));
  had.Compare(now, "what the server has now");
}

bool Player::MayBeCutShort(const v1::GenerationSpec& spec, const Call& call) const {
  return call.cancel_asked || spec.on_disconnect() == v1::DISCONNECT_POLICY_CANCEL || spec.has_max_duration();
}

// With TURN what was sent before the end is provisional: after a crash a request can be cut short before it.
Player::Next Player::JudgeProvisional(const client::Error& error, const v1::GenerationSpec& spec, Call* call) {
  Transcript& transcript = call->transcript;
  int64_t last = -1;
  for (const auto& [key, value] : error.metadata) {
    if (key == "last_position") last = std::stoll(value);
  }
  if (spec.durability() == v1::DURABILITY_TOKEN || !MayBeCutShort(spec, *call) || last < transcript.first() ||
      last >= transcript.position()) {
    findings_->Fail(findings_->lost,
                    absl::StrCat(transcript.who(), ": after position ", transcript.position(), ": ", Show(error)));
    return Next::kGiveUp;
  }
  call->others.push_back(transcript);
  findings_->provisional += transcript.Rewind(last - transcript.first());
  return Next::kAgain;
}

}  // namespace smt::testing
