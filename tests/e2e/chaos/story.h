// What a client does with a session: drawn from a seed before anything happens, so that it is the same whatever the
// servers go through.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "smt/v1/generation.pb.h"

namespace smt::testing {

// What the client does in the middle of a stream, besides reading.
enum class Whim {
  kVanish,    // drops the call, stays away for a while, resumes
  kTakeOver,  // resumes on a second connection while the first one reads on
  kRewind,    // forgets the end of what it has, as after a crash of its own, and resumes
  kCancel,    // CancelGeneration on a second connection
  kUpdate,    // UpdateSession on a second connection
  kSlow,      // reads slowly
};

struct Step {
  enum class Kind {
    kTurn,
    kUpdate,    // labels
    kRecreate,  // deletes the session and makes it again under its name
    // The ones below need a server that has them: --branching.
    kFork,      // and goes on in the fork
    kRollback,  // undoes the last `turns` turns
  };
  Kind kind = Kind::kTurn;
  // Of kTurn. Session, request_id and expected_position are filled in when it is run.
  v1::GenerationSpec spec;
  std::map<int64_t, Whim> whims;  // after so many generated ids
  bool by_library = false;        // read by Client::StreamThroughRestarts, without whims
  int32_t turns = 0;              // of kRollback
};

// A stretch of a session's life.
struct Story {
  uint64_t seed = 0;  // for what is drawn while it runs
  std::vector<Step> steps;
  double begin_anew = 0;       // of 0..1: the choice between a new session and one of those that there are
  bool delete_at_end = false;  // else it may be gone on with, after however many deaths of the server
};

struct StoryOptions {
  uint64_t seed = 1;
  int64_t longest_turn = 1500;  // ids
  bool branching = false;
};
// The `chapter`-th story of a client.
Story MakeStory(const StoryOptions& options, int client, int chapter);

std::string Describe(const v1::GenerationSpec& spec);

}  // namespace smt::testing
