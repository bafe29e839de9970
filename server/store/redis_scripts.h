// The Lua scripts that change sessions: each validates everything before its first write, since Redis keeps the earlier
// writes of a script that fails. A script touches keys of one session only, which share a hash tag.
#pragma once

#include <array>
#include <cstddef>

namespace smt::store_internal {

enum class RedisScript {
  kCommit,       // a session's writes of one group
  kPurge,        // everything of a session that was never finished, or is gone
  kClaim,        // an id for a uid
  kUnname,       // takes the id from a uid
  kPutSnapshot,  // and drops others
  kTail,         // where a log ends, and its last segments
  kReadLog,      // segments of a range
  kJoin,         // short segments to one
  kBeginRefs,    // notes what a session is about to refer to
  kAddRefs,      // notes, with the owner, who refers to what
  kDropRefs,     // the opposite; what nobody needs any more goes
  kEndRefs,      // forgets what was noted and did not come to be
  kDropRequest,  // of one session, if unchanged
  kAcquire,      // a lease
  kRenew,        // a lease
  kRelease,      // a lease
  kReplace,      // the store's format record, by one of another incarnation
  kCount
};

inline constexpr size_t kRedisScripts = static_cast<size_t>(RedisScript::kCount);
const char* RedisScriptText(RedisScript script);

}  // namespace smt::store_internal
