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
                      absl::StrCat(book_->session, ": ", what, ": ", Show(error)));
      return false;
    }
    unsure |= !busy;
    Pause(error);
  }
}

bool Player::Play(const Story& story, Book* book) {
  dice_ = Dice(story.seed, {2});
  book_ = book;
  for (const Step& step : story.steps) {
    Entry entry;
    entry.kind = step.kind;
    entry.session = book->session;
    bool done = true;
    switch (step.kind) {
      case Step::Kind::kTurn:
        done = PlayTurn(step, &entry);
        break;
      case Step::Kind::kUpdate:
        done = PlayUpdate(NewUpdate());
        break;
      case Step::Kind::kRecreate:
        done = DeleteOne(book->session);
        book->head = 0;
        book->labels.clear();
        for (Entry& earlier : book->entries) earlier.undone |= earlier.session == book->session;
        break;
      case Step::Kind::kFork:
        done = PlayFork(step, &entry);
        break;
      case Step::Kind::kRollback:
        done = PlayRollback(step, &entry);
        break;
    }
    book->entries.push_back(std::move(entry));
    if (!done) return false;
  }
  return true;
}

v1::UpdateSessionRequest Player::NewUpdate() {
  book_->labels["update"] = absl::StrCat(++book_->updates);
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_name(client::SessionName(book_->session));
  update.mutable_session()->mutable_labels()->insert(book_->labels.begin(), book_->labels.end());
  return update;
}

bool Player::PlayUpdate(const v1::UpdateSessionRequest& update) {
  v1::Session after;
  ++findings_->updated;
  return Insist("UpdateSession", [&](bool) { return first_.UpdateSession(update, &after); });
}

bool Player::Delete(Book* book) {
  book_ = book;
  for (const auto& [session, head] : book->left) {
    if (!DeleteOne(session)) return false;
  }
  return DeleteOne(book->session);
}

bool Player::DeleteOne(const std::string& session) {
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
  request.set_name(client::SessionName(book_->session));
  request.set_session_id(absl::StrCat(book_->session, "-f", ++book_->forks));
  request.set_expected_position(book_->head);
  request.set_request_id(absl::StrCat("fork-", book_->forks));
  v1::ForkSessionResponse response;
  const bool done = Insist("ForkSession", [&](bool) {
    grpc::ClientContext context;
    return client::FromGrpc(sessions->ForkSession(&context, request, &response));
  });
  if (!done) return false;
  ++findings_->branched;
  if (response.session().position() != book_->head) {
    findings_->Fail(findings_->diverged, absl::StrCat(book_->session, ": its fork stands at ",
                                                      response.session().position(), ", not at ", book_->head));
  }
  entry->fork = request.session_id();
  book_->left[book_->session] = book_->head;
  book_->session = request.session_id();  // labels are the parent's
  return true;
}

// Undoes the last turns that added something: one that added nothing goes with the one after it.
bool Player::PlayRollback(const Step& step, Entry* entry) {
  std::vector<Entry*> undone;
  for (auto it = book_->entries.rbegin(); it != book_->entries.rend() && it->kind != Step::Kind::kRecreate; ++it) {
    if (it->kind != Step::Kind::kTurn || it->undone) continue;
    const bool more =
        undone.empty() || it->transcript[0].start_position() != undone.back()->transcript[0].start_position();
    if (more && entry->turns == step.turns) break;
    entry->turns += more ? 1 : 0;
    undone.push_back(&*it);
  }
  auto sessions = v1::SessionService::NewStub(first_.channel());
  v1::RollbackSessionRequest request;
  request.set_name(client::SessionName(book_->session));
  request.set_turns(entry->turns);
  request.set_request_id(absl::StrCat("rollback-", ++book_->requests));
  v1::RollbackSessionResponse response;
  const bool done = Insist("RollbackSession", [&](bool) {
    grpc::ClientContext context;
    return client::FromGrpc(sessions->RollbackSession(&context, request, &response));
  });
  if (!done) return false;
  ++findings_->branched;
  for (Entry* turn : undone) {
    turn->undone = true;
    book_->head = turn->transcript[0].start_position();
  }
  if (response.session().position() != book_->head) {
    findings_->Fail(findings_->diverged, absl::StrCat(book_->session, ": was rolled back to ",
                                                      response.session().position(), ", not to ", book_->head));
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
        stored.emplace_back(findings_, had.who() + " replayed", had.start_position(), spec.durability());
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
  v1::Generation record;
  const auto get = [&](bool) { return first_.GetGeneration(spec.session(), spec.request_id(), &record); };
  if (!Insist("GetGeneration of " + had.who(), get)) return false;
  const auto state = had.cancelled() ? v1::GENERATION_STATE_CANCELLED : v1::GENERATION_STATE_FINISHED;
  if (record.state() != state || record.start_position() != had.start_position() ||
      record.prompt_tokens() != had.prompt_tokens() || record.position() != had.end().position()) {
    findings_->Fail(findings_->diverged, had.who() + ": is remembered as " + record.ShortDebugString());
  }
  return true;
}

bool Player::CheckStored(Book* book, size_t skip) {
  book_ = book;
  for (size_t i = skip; i < book->entries.size(); ++i) {
    const Entry& entry = book->entries[i];
    if (entry.kind == Step::Kind::kTurn && !entry.undone && !Replay(entry)) return false;
  }
  for (const auto& [session, head] : book->left) {
    if (!CheckSession(session, head, nullptr)) return false;
  }
  return CheckSession(book->session, book->head, &book->labels);
}

bool Player::CheckSession(const std::string& name, int64_t head, const std::map<std::string, std::string>* labels) {
  v1::Session session;
  if (!Insist("GetSession", [&](bool) { return first_.GetSession(client::SessionName(name), &session); })) return false;
  if (session.position() != head) {
    findings_->Fail(session.position() < head ? findings_->lost : findings_->doubled,
                    absl::StrCat(name, ": stands at ", session.position(), ", its client at ", head));
  }
  if (labels != nullptr &&
      std::map<std::string, std::string>(session.labels().begin(), session.labels().end()) != *labels) {
    findings_->Fail(findings_->diverged, name + ": its labels are not those it was given");
  }
  if (session.active()) findings_->Fail(findings_->errors, name + ": is active though nobody writes it");
  return true;
}

}  // namespace smt::testing
