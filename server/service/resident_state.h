// The state of a session that is idle in one of the engine's slots, which the store does not have yet.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/time/time.h"
#include "server/service/service_context.h"

namespace smt {

struct ResidentState {
  int64_t position = 0;  // 0: none
  std::shared_ptr<const StateBuffer> state;
};

// Waits for the engine, which answers within about a step; none when `patience` ends before. Not for the delivery
// thread.
ResidentState ReadResident(const ServiceContext& context, std::string_view session_key, absl::Duration patience);

// Hands it to the session manager as a snapshot, and waits until that is in the store: what Export gives then stands at
// the head. Where the session is not resident nothing happens.
void KeepResident(ServiceContext* context, const SessionInfo& session, absl::Duration patience);

// Gives `to`, forked from the head of `from`, the state that `from` has in its slot, so that its first turn begins from
// that. Returns at once. Does nothing unless both stand at the same position; the state may lie a token behind it.
void SaveResident(ServiceContext* context, const SessionInfo& from, const SessionInfo& to);

}  // namespace smt
