// process_*: what every Prometheus client reports about its process, read from /proc/self.
#pragma once

#include <ostream>

namespace smt {

void AppendProcessMetrics(std::ostream& out);

}  // namespace smt
