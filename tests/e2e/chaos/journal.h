// What came of a story: enough to run it again elsewhere and to ask the server for it again.
#pragma once

#include <cstdint>
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
using Journal = std::vector<Entry>;

}  // namespace smt::testing
