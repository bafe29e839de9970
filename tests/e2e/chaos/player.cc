// The story's steps other than turns, and what is asked afterwards. Turns are in player_turn.cc.
#include "tests/e2e/chaos/player.h"

#include "absl/strings/str_cat.h"

namespace smt::testing {
namespace {

client::Client::Options To(const std::string& address) {
  client::Client::Options options;
  options.address = address;
  options.timeout = absl::Seconds(10);
  options.stream_timeout = absl::Seconds(120);
  return options;
}

}  // namespace

std::string Show(const client::Error& error) {
  return absl::StrCat("code ", error.code, error.reason.empty() ? "" : " ", error.reason, ": ", error.message);
}

Player::Player(Options options, Findings* findings)
    : options_(std::move(options)),
      findings_(findings),
      first_(To(options_.address)),
      second_(To(options_.second_address)) {}

// Codes without a reason are gRPC's own: a connection that broke.
bool Player::Transient(const client::Error& error) {
  if (error.reason.empty() && (error.code == grpc::StatusCode::INTERNAL || error.code == grpc::StatusCode::UNKNOWN)) {
    findings_->Note(absl::StrCat("a broken connection is code ", error.code, ": ", error.message));
    return true;
  }
  return error.code == grpc::StatusCode::UNAVAILABLE || error.code == grpc::StatusCode::CANCELLED ||
         error.code == grpc::StatusCode::DEADLINE_EXCEEDED ||
         (options_.disk_fills && error.code == grpc::StatusCode::RESOURCE_EXHAUSTED);
}

void Player::Pause(const client::Error& error) {
  ++findings_->retries;
  absl::SleepFor(dice_.Between(absl::Milliseconds(5), absl::Milliseconds(150)));
  if (error.code == grpc::StatusCode::UNAVAILABLE) first_.WaitForConnection(absl::Seconds(1));
}

bool Player::Insist(const std::string& what, const std::function<client::Error(bool unsure)>& call) {
  bool unsure = false;
  for (const absl::Time give_up = absl::Now() + options_.patience;;) {
    const client::Error error = call(unsure);
    if (error.ok()) return true;
    const bool busy = error.code == grpc::StatusCode::ABORTED;
    if ((!Transient(error) && !busy) || absl::Now() > give_up) {
      const bool gone = error.code == grpc::StatusCode::NOT_FOUND;
      findings_->Fail(gone ? findings_->lost : findings_->errors,
                      absl::StrCat(session_, ": ", what, ": ", Show(error)));
      return false;
    }
    unsure |= !busy;
    Pause(error);
  }
}

bool Player::Play(const Story& story, Journal* journal) {
  dice_ = Dice(story.seed, {2});
  session_ = story.session;
  head_ = 0;
  sessions_made_ = requests_ = 0;
  labels_.clear();
  ++findings_->sessions;
  for (size_t i = 0; i < story.steps.size(); ++i) {
    const Step& step = story.steps[i];
    Entry entry;
    entry.kind = step.kind;
    entry.session = session_;
    bool done = true;
    switch (step.kind) {
      case Step::Kind::kTurn:
        done = PlayTurn(step, &entry);
        break;
      case Step::Kind::kUpdate:
        done = PlayUpdate(static_cast<int>(i));
        break;
      case Step::Kind::kRecreate:
        done = Delete(session_);
        head_ = 0;
        labels_.clear();
        for (Entry& earlier : *journal) earlier.undone |= earlier.session == session_;
        break;
      case Step::Kind::kFork:
        done = PlayFork(step, &entry);
        break;
      case Step::Kind::kRollback:
        entry.turns = step.turns;
        done = PlayRollback(step, journal);
        break;
    }
    journal->push_back(std::move(entry));
    if (!done) return false;
  }
  return true;
}

bool Player::PlayUpdate(int step) {
  labels_["step"] = absl::StrCat(step);
  v1::UpdateSessionRequest request;
  request.mutable_session()->set_name(client::SessionName(session_));
  for (const auto& [key, value] : labels_) (*request.mutable_session()->mutable_labels())[key] = value;
  v1::Session after;
  ++findings_->updated;
  return Insist("UpdateSession", [&](bool) { return first_.UpdateSession(request, &after); });
}

bool Player::Delete(const std::string& session) {
  v1::DeleteSessionRequest request;
  request.set_name(client::SessionName(session));
  const bool deleted = Insist("DeleteSession", [&](bool unsure) {
    client::Error error = first_.DeleteSession(request);
    if (unsure && error.code == grpc::StatusCode::NOT_FOUND) error = {};  // the attempt before did it
    return error;
  });
  if (!deleted) return false;
  ++findings_->deleted;
  return Insist("GetSession of a deleted session", [&](bool) {
    v1::Session found;
    client::Error error = first_.GetSession(client::SessionName(session), &found);
    if (error.code == grpc::StatusCode::NOT_FOUND) return client::Error();
    if (error.ok()) error = {.code = grpc::StatusCode::ALREADY_EXISTS, .message = "it came back"};
    return error;
  });
}

bool Player::PlayFork(const Step& step, Entry* entry) {
  auto sessions = v1::SessionService::NewStub(first_.channel());
  v1::ForkSessionRequest request;
  request.set_name(client::SessionName(session_));
  request.set_session_id(absl::StrCat(session_, "-f", ++sessions_made_));
  request.set_expected_position(head_);
  request.set_request_id(absl::StrCat("fork-", sessions_made_));
  v1::ForkSessionResponse response;
  const bool done = Insist("ForkSession", [&](bool) {
    grpc::ClientContext context;
    return client::FromGrpc(sessions->ForkSession(&context, request, &response));
  });
  if (!done) return false;
  ++findings_->branched;
  if (response.session().position() != head_) {
    findings_->Fail(findings_->diverged,
                    absl::StrCat(session_, ": its fork stands at ", response.session().position(), ", not at ", head_));
  }
  entry->fork = request.session_id();
  session_ = request.session_id();  // labels are the parent's
  return true;
}

bool Player::PlayRollback(const Step& step, Journal* journal) {
  auto sessions = v1::SessionService::NewStub(first_.channel());
  v1::RollbackSessionRequest request;
  request.set_name(client::SessionName(session_));
  request.set_turns(step.turns);
  request.set_request_id(absl::StrCat("rollback-", ++requests_));
  v1::RollbackSessionResponse response;
  const bool done = Insist("RollbackSession", [&](bool) {
    grpc::ClientContext context;
    return client::FromGrpc(sessions->RollbackSession(&context, request, &response));
  });
  if (!done) return false;
  ++findings_->branched;
  int32_t left = step.turns;
  for (auto entry = journal->rbegin(); entry != journal->rend() && left > 0; ++entry) {
    if (entry->kind != Step::Kind::kTurn || entry->undone) continue;
    entry->undone = true;
    head_ = entry->transcript[0].start_position();
    --left;
  }
  if (response.session().position() != head_) {
    findings_->Fail(findings_->diverged,
                    absl::StrCat(session_, ": was rolled back to ", response.session().position(), ", not to ", head_));
  }
  return true;
}

bool Player::Replay(const Entry& entry) {
  v1::GenerationSpec spec = entry.spec;
  spec.mutable_output()->set_echo(true);
  const Transcript& had = entry.transcript[0];
  std::vector<Transcript> stored;
  const bool done = Insist("a replay of " + had.who(), [&](bool) {
    Transcript& transcript =
        stored.emplace_back(findings_, had.who() + " replayed", had.start_position(), /*durable_first=*/false);
    transcript.Quiet();
    bool computed = false;
    const client::Error error = first_.StreamGenerate(spec, [&](const v1::GenerationEvent& event) {
      computed |= event.has_started() && !event.started().replayed();
      transcript.Take(event);
      return !computed;
    });
    if (computed) findings_->Fail(findings_->doubled, had.who() + ": a retry runs a second time");
    if (error.ok() && !transcript.finished()) {
      return client::Error{.code = grpc::StatusCode::DATA_LOSS, .message = "the replay has no end"};
    }
    return error;
  });
  if (!done) return false;
  had.Compare(stored.back(), "the log");
  if (stored.back().echo() != entry.prompt) {
    findings_->Fail(findings_->diverged, had.who() + ": the log has another prompt");
  }
  return true;
}

bool Player::CheckStored(Journal* journal) {
  for (const Entry& entry : *journal) {
    // A fork knows nothing of its parent's requests, and a request of a branch left behind is superseded.
    if (entry.kind == Step::Kind::kTurn && !entry.undone && !Replay(entry)) return false;
  }
  v1::Session session;
  const auto get = [&](bool) { return first_.GetSession(client::SessionName(session_), &session); };
  if (!Insist("GetSession", get)) return false;
  if (session.position() != head_) {
    findings_->Fail(session.position() < head_ ? findings_->lost : findings_->doubled,
                    absl::StrCat(session_, ": stands at ", session.position(), ", its client at ", head_));
  }
  const std::map<std::string, std::string> labels(session.labels().begin(), session.labels().end());
  if (labels != labels_) findings_->Fail(findings_->diverged, session_ + ": its labels are not those it was given");
  if (session.active()) findings_->Fail(findings_->errors, session_ + ": is active though nobody writes it");
  return true;
}

}  // namespace smt::testing
