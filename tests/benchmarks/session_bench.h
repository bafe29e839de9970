// Benchmarks of stored sessions alone: no model, no server.
#pragma once

#include "nlohmann/json.hpp"

namespace smt::bench {

// A store with so many sessions: seconds until a session manager is open on it (with a limit on sessions it counts
// them), and milliseconds of pages of 1,000 from the first to the last.
nlohmann::json ManySessions(int sessions, int rounds);

}  // namespace smt::bench
