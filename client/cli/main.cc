// smt: the command line client.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "google/protobuf/util/json_util.h"
#include "model/base/cli_args.h"
#include "nlohmann/json.hpp"

namespace smt::cli {

int Fail(const client::Error& error) {
  absl::FPrintF(stderr, "smt: %s\n", client::Explain(error));
  return client::ExitCode(error);
}

void PrintJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  if (google::protobuf::util::MessageToJsonString(message, &text, options).ok()) {
    absl::PrintF("%s\n", text);
    std::fflush(stdout);
  }
}

std::string ReadStdin() {
  std::string text;
  char buffer[1 << 16];
  while (const size_t got = std::fread(buffer, 1, sizeof(buffer), stdin)) text.append(buffer, got);
  return text;
}

bool ParseIds(const std::string& json, std::vector<int32_t>* ids) {
  const nlohmann::json value = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!value.is_array()) return false;
  for (const nlohmann::json& id : value) {
    if (!id.is_number_integer() || id.get<int64_t>() < INT32_MIN || id.get<int64_t>() > INT32_MAX) return false;
    ids->push_back(id.get<int32_t>());
  }
  return true;
}

}  // namespace smt::cli

int main(int argc, char** argv) {
  smt::cli::Context context;
  double timeout = 60, stream_timeout = 0;
  CLI::App app("Talks to an SMT Serve server.");
  app.footer(
      "Exit codes: 0 success, 1 other errors, 2 bad usage or input, 3 not found, 4 conflict (busy, exists already,\n"
      "precondition), 5 unavailable or out of time, 6 stored data damaged, 130 interrupted.");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--address,-a", context.options.address, "host:port of the server")
      ->envname("SMT_ADDRESS")
      ->capture_default_str();
  app.add_option("--timeout", timeout, "Seconds for unary calls")->capture_default_str();
  auto* stream = app.add_option("--stream_timeout", stream_timeout,
                                "Seconds for calls that stream, as generate and score. Default: none");
  app.add_flag("--json", context.json, "One JSON object an event or answer, on one line");
  smt::cli::AddGenerate(&app, &context);
  smt::cli::AddSessions(&app, &context);
  smt::cli::AddText(&app, &context);
  smt::cli::AddServerInfo(&app, &context);
  try {
    app.parse(smt::CliArguments(argc, argv));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  context.options.timeout = absl::Seconds(timeout);
  if (*stream) context.options.stream_timeout = absl::Seconds(stream_timeout);
  try {
    return context.run();
  } catch (const std::exception& error) {
    absl::FPrintF(stderr, "smt: %s\n", error.what());
    return 1;
  }
}
