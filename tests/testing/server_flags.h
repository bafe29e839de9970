// The flags of smt_server that tests and benchmarks give, for programs that serve as it does but on an executor of
// their own.
#pragma once

#include "server/server_options.h"

namespace smt {

// After absl::ParseCommandLine. What no flag says has the default of the options, but for no delay of the drain.
ServerOptions OptionsFromTestFlags();

}  // namespace smt
