// What the engine reports, as the server's metrics.
#pragma once

#include <memory>

#include "server/engine/engine_metrics.h"
#include "server/metrics/server_metrics.h"

namespace smt {

// `metrics` must outlive it.
std::unique_ptr<EngineMetrics> NewEngineMetrics(ServerMetrics* metrics);

}  // namespace smt
