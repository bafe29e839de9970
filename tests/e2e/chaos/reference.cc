#include "tests/e2e/chaos/reference.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/e2e/chaos/player.h"

namespace smt::testing {
namespace {

client::Client::Options To(const std::string& address) {
  client::Client::Options options;
  options.address = address;
  return options;
}

}  // namespace

Reference::Reference(const std::string& address, Findings* findings) : client_(To(address)), findings_(findings) {}

bool Reference::Expect(const std::string& what, const client::Error& error) {
  if (!error.ok()) findings_->Fail(findings_->errors, absl::StrCat("the reference server: ", what, ": ", Show(error)));
  return error.ok();
}

void Reference::Remove(const std::string& session) {
  v1::DeleteSessionRequest request;
  request.set_name(client::SessionName(session));
  request.set_allow_missing(true);
  Expect("DeleteSession", client_.DeleteSession(request));
}

void Reference::Forget(const Book& book) {
  Remove(book.session);
  for (const auto& [session, head] : book.left) Remove(session);
}

void Reference::Compare(Book* book) {
  auto sessions = v1::SessionService::NewStub(client_.channel());
  for (; book->compared < book->entries.size(); ++book->compared) {
    Entry& entry = book->entries[book->compared];
    grpc::ClientContext context;
    if (entry.kind == Step::Kind::kTurn && !entry.transcript.empty()) {
      CompareTurn(&entry);
    } else if (entry.kind == Step::Kind::kRecreate) {
      Remove(entry.session);
    } else if (entry.kind == Step::Kind::kFork) {
      v1::ForkSessionRequest request;
      request.set_name(client::SessionName(entry.session));
      request.set_session_id(entry.fork);
      v1::ForkSessionResponse response;
      Expect("ForkSession", client::FromGrpc(sessions->ForkSession(&context, request, &response)));
    } else if (entry.kind == Step::Kind::kRollback) {
      v1::RollbackSessionRequest request;
      request.set_name(client::SessionName(entry.session));
      request.set_turns(entry.turns);
      v1::RollbackSessionResponse response;
      Expect("RollbackSession", client::FromGrpc(sessions->RollbackSession(&context, request, &response)));
    }
  }
}

void Reference::CompareTurn(Entry* entry) {
  const Transcript& had = entry->transcript[0];
  v1::GenerationSpec spec = entry->spec;
  spec.set_durability(v1::DURABILITY_TURN);
  spec.mutable_output()->set_echo(true);
  spec.clear_max_duration();
  if (had.cut_short()) {
    const int64_t generated = had.end().usage().generated_tokens();
    spec.mutable_stopping()->set_max_tokens(generated);
    if (spec.stopping().min_tokens() > generated) {
      // Fewer than max_tokens they must be; but then a stop string that ends with the last id would no longer be passed
      // over.
      spec.mutable_stopping()->set_min_tokens(generated);
      spec.mutable_stopping()->clear_stop_strings();
    }
  }
  Transcript undisturbed(findings_, had.who() + " undisturbed", had.start_position(), spec.durability());
  undisturbed.Quiet();
  const client::Error error = client_.StreamGenerate(spec, [&](const v1::GenerationEvent& event) {
    undisturbed.Take(event);
    return true;
  });
  if (!error.ok() || !undisturbed.finished()) {
    findings_->Fail(findings_->errors, absl::StrCat("the reference server: ", had.who(), ": ", Show(error)));
    return;
  }
  entry->prompt = undisturbed.echo();
  const int64_t failures = Findings::Own();
  had.Compare(undisturbed, "the undisturbed run");
  if (Findings::Own() != failures) {
    findings_->Say("  the request was " + Describe(entry->spec));
  } else if (!had.finished()) {
    findings_->Say(absl::StrCat("  what ", had.who(), " was given is as in the undisturbed run, but without the end"));
  }
}

}  // namespace smt::testing
