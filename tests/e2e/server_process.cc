#include "tests/e2e/server_process.h"

#include <signal.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

namespace smt::testing {

ServerProcess::ServerProcess(Options options) : options_(std::move(options)) {
  if (options_.dir.empty()) options_.dir = dir_.path();
  if (options_.store_dir.empty()) options_.store_dir = options_.dir + "/store";
}

void ServerProcess::Use(std::string program, std::vector<std::string> flags) {
  options_.program = std::move(program);
  options_.flags = std::move(flags);
}

absl::Status ServerProcess::Start(absl::Duration timeout) {
  const std::string address_file = absl::StrCat(options_.dir, "/address.", ++starts_);
  Process::Options process;
  process.argv = {
      BinDir() + "/" + options_.program,
      "--model_dir=" + options_.model_dir,
      options_.store_url.empty() ? "--store_dir=" + options_.store_dir : "--store_url=" + options_.store_url,
      "--listen_address=" + (options_.same_address && !address_.empty() ? address_ : "127.0.0.1:0"),
      "--metrics_address=127.0.0.1:0",
      "--device=" + options_.device,
      "--drain_delay=0s",
      "--address_file=" + address_file};
  process.argv.insert(process.argv.end(), options_.flags.begin(), options_.flags.end());
  process.output_dir = options_.dir;
  process.name = absl::StrCat("server.", starts_);
  process_.reset();
  std::error_code none;
  std::filesystem::remove(address_file, none);  // of an earlier run in this directory
  auto started = Process::Start(process);
  if (!started.ok()) return started.status();
  process_.emplace(*std::move(started));
  for (const absl::Time deadline = absl::Now() + timeout; absl::Now() < deadline;
       absl::SleepFor(absl::Milliseconds(10))) {
    const nlohmann::json line = nlohmann::json::parse(ReadFileOrEmpty(address_file), nullptr, false);
    if (line.is_object()) {
      address_ = line.value("address", "");
      metrics_address_ = line.value("metrics_address", "");
      return absl::OkStatus();
    }
    if (!process_->Running()) break;
  }
  return absl::UnavailableError(absl::StrCat("the server does not serve: ", process_->Stderr()));
}

void ServerProcess::Kill() {
  process_->Signal(SIGKILL);
  process_->Wait(absl::Seconds(10)).IgnoreError();
}

absl::StatusOr<int> ServerProcess::Terminate(absl::Duration timeout) {
  process_->Signal(SIGTERM);
  return process_->Wait(timeout);
}

absl::StatusOr<int> ServerProcess::WaitForExit(absl::Duration timeout) { return process_->Wait(timeout); }

std::unique_ptr<client::Client> ServerProcess::NewClient() const {
  client::Client::Options options;
  options.address = address_;
  options.stream_timeout = absl::Seconds(120);
  return std::make_unique<client::Client>(options);
}

Outcome Generate(client::Client& client, const v1::GenerationSpec& spec, int64_t stop_after) {
  Outcome outcome;
  outcome.error = client.StreamGenerate(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_started()) outcome.started = event.started();
    if (event.has_chunk()) {
      outcome.ids.insert(outcome.ids.end(), event.chunk().token_ids().begin(), event.chunk().token_ids().end());
      outcome.text += event.chunk().text();
      outcome.last_position = event.chunk().position();
    }
    if (event.has_finished()) {
      outcome.finished = event.finished();
      outcome.has_finished = true;
    }
    return stop_after < 0 || static_cast<int64_t>(outcome.ids.size()) < stop_after;
  });
  return outcome;
}

int64_t PositionOf(const client::Error& error) {
  for (const auto& [key, value] : error.metadata) {
    if (key == "position") return std::stoll(value);
  }
  return -1;
}

v1::GenerationSpec Spec(const std::string& session, const std::string& prompt, int64_t max_tokens, int64_t seed) {
  v1::GenerationSpec spec;
  if (!prompt.empty()) spec.set_text(prompt);
  spec.set_session(client::SessionName(session));
  spec.set_create_session(!session.empty());
  spec.mutable_sampling()->set_seed(seed);
  spec.mutable_sampling()->set_temperature(0.9F);
  spec.mutable_stopping()->set_max_tokens(max_tokens);
  spec.mutable_stopping()->set_ignore_eos(true);
  return spec;
}

}  // namespace smt::testing
