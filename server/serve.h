// The life of the program once its flags are read: start, announce, wait for a signal or a fault, stop.
//
// stdout gets one line of JSON when it serves; everything else is logged on stderr. Exit status: 0 after SIGTERM or
// SIGINT, 1 bad flags, 2 the model, 3 the store, 4 an address, 5 the device, 6 the device failed, in its warm-up or
// while it served.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "server/server.h"
#include "server/server_options.h"

namespace smt {

// Logs why the program cannot start; gives `exit_code`.
int RefuseToStart(Server::ExitCode exit_code, const absl::Status& status);

// Gives the exit status. Called by the main thread before there are others: it takes the signals. Does not return after
// a fault of the device, but ends the process with status 6. `new_executor` as in Server::Start.
int Serve(const ServerOptions& options, const Server::ExecutorFactory& new_executor = nullptr);

// --repair_store: makes a store of what can be read of a damaged one, and says what that is. Gives the exit status.
int RepairStore(const std::string& store_dir);

}  // namespace smt
