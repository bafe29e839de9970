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
#include "tests/e2e/chaos/dice.h"
#include "tests/e2e/chaos/findings.h"
#include "tests/e2e/chaos/journal.h"
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

  // Plays it to its end. False where a step could not be done; the failure is in the findings.
  bool Play(const Story& story, Journal* journal);
  // Asks the server for all of it again: turns from its log by their request_id, position and labels.
  bool CheckStored(Journal* journal);
  // Deletes the session that the story ended with; it must stay away.
  bool Delete(const std::string& session);

 private:
  struct Call;  // of a turn
  enum class Next { kDone, kAgain, kGiveUp };

  bool PlayTurn(const Step& step, Entry* entry);
  client::Error ReadOnce(const Step& step, const v1::GenerationSpec& spec, Call* call);
  bool OnEvent(const v1::GenerationEvent& event, Call* call);
  void ActOn(Whim whim, Call* call);
  void StopHelpers(Call* call);
  // What to do after a call of a turn ended.
  Next Judge(const client::Error& error, const v1::GenerationSpec& spec, Call* call);
  Next JudgeProvisional(const client::Error& error, const v1::GenerationSpec& spec, Call* call);
  // Finds out where a request began whose `started` was not read.
  void LookUp(const v1::GenerationSpec& spec, Call* call);
  bool Replay(const Entry& entry);
  bool PlayUpdate(int step);
  bool PlayFork(const Step& step, Entry* entry);
  bool PlayRollback(const Step& step, Journal* journal);

  bool Transient(const client::Error& error);
  // Calls until it is done; false when patience ends or the answer is one that no crash excuses. `unsure`: an earlier
  // attempt may have been carried out.
  bool Insist(const std::string& what, const std::function<client::Error(bool unsure)>& call);
  void Pause(const client::Error& error);

  const Options options_;
  Findings* const findings_;
  client::Client first_, second_;
  Dice dice_{0, {}};
  // Of the present story.
  std::string session_;
  int64_t head_ = 0;
  int sessions_made_ = 0, requests_ = 0;
  std::map<std::string, std::string> labels_;
};

std::string Show(const client::Error& error);

}  // namespace smt::testing
