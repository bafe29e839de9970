#include "server/service/resident_state.h"

#include <utility>

#include "absl/synchronization/mutex.h"

namespace smt {

ResidentState ReadResident(const ServiceContext& context, std::string_view session_key, absl::Duration patience) {
  struct Answer {  // outlives a caller that has lost its patience
    absl::Mutex mu;
    bool done ABSL_GUARDED_BY(mu) = false;
    ResidentState resident ABSL_GUARDED_BY(mu);
  };
  const auto answer = std::make_shared<Answer>();
  context.engine->SaveState(session_key, [answer](int64_t position, std::shared_ptr<const StateBuffer> state) {
    absl::MutexLock lock(&answer->mu);
    answer->resident = {position, std::move(state)};
    answer->done = true;
  });
  absl::MutexLock lock(&answer->mu);
  if (!answer->mu.AwaitWithTimeout(absl::Condition(&answer->done), patience)) return {};
  return answer->resident;
}

void KeepResident(ServiceContext* context, const SessionInfo& session, absl::Duration patience) {
  ResidentState resident = ReadResident(*context, session.key, patience);
  if (resident.state == nullptr || resident.position > session.position) return;
  context->sessions->SaveEvicted(session.key, resident.position, std::move(resident.state));
  context->sessions->Flush().IgnoreError();  // a store that is away says so to what follows
}

void SaveResident(ServiceContext* context, const SessionInfo& from, const SessionInfo& to) {
  if (to.position != from.position || to.position == 0) return;
  context->engine->SaveState(from.key, [sessions = context->sessions, key = to.key, head = to.position](
                                           int64_t position, std::shared_ptr<const StateBuffer> state) {
    // The parent may have gone on since: then the state is not of what they share.
    if (state != nullptr && position <= head) sessions->SaveEvicted(key, position, std::move(state));
  });
}

}  // namespace smt
