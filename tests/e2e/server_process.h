// A real smt_server on a free port with its own store, started, killed and started again. Not thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "tests/testing/process.h"

namespace smt::testing {

class ServerProcess {
 public:
  struct Options {
    std::string program = "smt_server";
    std::string model_dir = "models/books-6m";
    std::string device = "cpu";
    std::string dir;                 // of what it prints and its store; default: a temporary one of the object's own
    std::string store_dir;           // default: inside dir
    std::string store_url;           // a Redis, instead
    std::vector<std::string> flags;  // more of them
    bool same_address = false;       // when started again
  };
  ServerProcess() : ServerProcess(Options()) {}
  explicit ServerProcess(Options options);

  // Starts it and waits until it serves; the status holds what it printed when it does not.
  absl::Status Start(absl::Duration timeout = absl::Seconds(60));
  // What the next start runs.
  void Use(std::string program, std::vector<std::string> flags);
  // SIGKILL.
  void Kill();
  // SIGTERM; the exit code.
  absl::StatusOr<int> Terminate(absl::Duration timeout = absl::Seconds(15));
  // Waits for the end of a server that was not asked to end.
  absl::StatusOr<int> WaitForExit(absl::Duration timeout);

  const std::string& address() const { return address_; }
  const std::string& metrics_address() const { return metrics_address_; }
  const std::string& store_dir() const { return options_.store_dir; }
  pid_t pid() const { return process_->pid(); }
  bool Running() { return process_ && process_->Running(); }
  void Signal(int signal) const { process_->Signal(signal); }
  std::string Stdout() const { return process_ ? process_->Stdout() : ""; }
  std::string Stderr() const { return process_ ? process_->Stderr() : ""; }
  std::unique_ptr<client::Client> NewClient() const;

 private:
  TempDir dir_;
  Options options_;
  std::optional<Process> process_;
  std::string address_, metrics_address_;
  int starts_ = 0;
};

// What one generation gave.
struct Outcome {
  client::Error error;
  std::vector<int32_t> ids;
  std::string text;
  v1::GenerationStarted started;
  v1::GenerationFinished finished;
  bool has_finished = false;
  int64_t last_position = 0;
};
// Runs the request to its end; stops reading (and cancels the call) after `stop_after` ids.
Outcome Generate(client::Client& client, const v1::GenerationSpec& spec, int64_t stop_after = -1);
// Where an error says that the session stands; -1 where it does not.
int64_t PositionOf(const client::Error& error);
// A seeded request on a session.
v1::GenerationSpec Spec(const std::string& session, const std::string& prompt, int64_t max_tokens, int64_t seed = 7);

}  // namespace smt::testing
