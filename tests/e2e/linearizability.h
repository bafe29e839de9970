// Whether what clients saw of a session, call by call in real time, could have come of one copy of it: the search of
// Wing and Gong, with the states remembered that were tried (Lowe). Sessions are checked one by one, which suffices,
// for linearizability is local.
//
// A call without a known outcome may have taken effect at any time after it began, or never. One that was refused as
// busy says nothing and is left out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace smt::testing {

struct Operation {
  enum class Kind { kCreate, kTurn, kRollback, kDelete, kGet };
  enum class Result {
    kOk,
    kUnknown,   // broken off
    kNotFound,  // the session is not there
    kExists,    // kCreate: it is
    kMoved,     // kTurn: it stands at `position` and not at `expected`
    kNoTurn,    // kRollback: there is none to undo
  };
  Kind kind = Kind::kGet;
  int64_t expected = 0;  // kTurn: where it is to begin
  int64_t ids = 0;       // kTurn: how many it appends
  Result result = Result::kUnknown;
  int64_t position = 0;        // that was told: with kOk of all but kDelete, with kMoved
  int64_t begin = 0, end = 0;  // of the call, by one clock
  int client = 0;              // for people

  std::string ToString() const;
};

// Empty, or the calls that no order explains, for people: the longest order that does and what could not follow.
std::string ExplainNonlinearizable(std::vector<Operation> history);

}  // namespace smt::testing
