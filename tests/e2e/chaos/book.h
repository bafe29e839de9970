// A session's life so far, as its client remembers it: enough to go on, to run it again elsewhere and to ask the server
// for it again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "smt/v1/generation.pb.h"
#include "tests/e2e/chaos/story.h"
#include "tests/e2e/chaos/transcript.h"

namespace smt::testing {

struct Entry {
  Step::Kind kind = Step::Kind::kTurn;
  std::string session;  // {id} it was done to
  // Of kTurn: the request as it was sent and what came of it.
  v1::GenerationSpec spec;
  std::vector<Transcript> transcript;  // one
  std::vector<int32_t> prompt;         // its ids, from the undisturbed run
  std::string fork;                    // {id} of the new session, of kFork
  int32_t turns = 0;                   // of kRollback
  bool undone = false;                 // by a rollback or a deletion: the server need not know it any more
};

struct Book {
  std::string session;  // {id}
  int64_t head = 0;
  std::map<std::string, std::string> labels;
  int requests = 0, forks = 0, updates = 0;  // made so far, to name the next
  std::map<std::string, int64_t> left;       // sessions it went on from as a fork, and where they stand
  std::vector<Entry> entries;
  size_t compared = 0;  // so many of them have been, with the undisturbed run
};

}  // namespace smt::testing
