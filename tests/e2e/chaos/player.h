// A client that plays stories against a server which is being disturbed: it tries again until each step is done, as an
// application would, and writes down what it was given.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/client.h"
#include "tests/e2e/chaos/book.h"
#include "tests/e2e/chaos/dice.h"
#include "tests/e2e/chaos/findings.h"
#include "tests/e2e/chaos/story.h"

namespace smt::testing {

class Player {
 public:
  struct Options {
    std::string address, second_address;          // of two connections to the same server
    absl::Duration patience = absl::Seconds(60);  // without anything new, before a stream counts as stuck
    bool disk_fills = false;                      // RESOURCE_EXHAUSTED is to be expected
  };
  Player(Options options, Findings* findings);

  // Plays the story on the book's session. False where a step could not be done; the failure is in the findings.
  bool Play(const Story& story, Book* book);
  // Asks the server for it again: turns after the first `skip` entries from its log by their request_id, position and
  // labels.
  bool CheckStored(Book* book, size_t skip);
  // Deletes its sessions; they must stay away.
  bool Delete(Book* book);

 private:
  struct Call;  // of a turn
  enum class Next { kDone, kAgain, kGiveUp };

  bool PlayTurn(const Step& step, Entry* entry);
  Next Settle(const v1::GenerationSpec& spec, Call* call);
  void Forget(Call* call);
  void ShowDivergence(const v1::GenerationSpec& spec, const Transcript& had);
  bool MayBeCutShort(const v1::GenerationSpec& spec, const Call& call) const;
  client::Error ReadOnce(const Step& step, const v1::GenerationSpec& spec, Call* call);
  bool OnEvent(const v1::GenerationEvent& event, Call* call);
  void ActOn(Whim whim, Call* call);
  void StopHelpers(Call* call);
  // What to do after a call of a turn ended.
  Next Judge(const client::Error& error, const v1::GenerationSpec& spec, Call* call);
  Next JudgeProvisional(const client::Error& error, const v1::GenerationSpec& spec, Call* call);
  // Asks where the request stands: where it began if its `started` was not read; that what was said to be durable is
  // there.
  void LookUp(const v1::GenerationSpec& spec, Call* call);
  bool Replay(const Entry& entry);
  v1::UpdateSessionRequest NewUpdate();
  bool PlayUpdate(const v1::UpdateSessionRequest& update);
  bool PlayFork(const Step& step, Entry* entry);
  bool PlayRollback(const Step& step, Entry* entry);
  bool DeleteOne(const std::string& session);
  bool CheckSession(const std::string& session, int64_t head, const std::map<std::string, std::string>* labels);

  bool Transient(const client::Error& error);
  // Calls until it is done; false when patience ends or the answer is one that no crash excuses. `unsure`: an earlier
  // attempt may have been carried out.
  bool Insist(const std::string& what, const std::function<client::Error(bool unsure)>& call);
  void Pause(const client::Error& error);

  const Options options_;
  Findings* const findings_;
  client::Client first_, second_;
  Dice dice_{0, {}};
  Book* book_ = nullptr;  // the present one
};

std::string Show(const client::Error& error);

}  // namespace smt::testing
