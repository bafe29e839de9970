// smt: the command line client.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/commands.h"
#include "google/protobuf/stubs/logging.h"
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

namespace {

// A word that stands where a command should; empty: there is none. CLI11 says only that a command is required.
std::string UnknownCommand(const CLI::App& app) {
  std::string words = "smt";
  const CLI::App* parsed = &app;
  while (!parsed->get_subcommands().empty()) {
    parsed = parsed->get_subcommands().front();
    words += " " + parsed->get_name();
  }
  const std::vector<std::string> rest = app.remaining(true);
  if (parsed->get_require_subcommand_min() == 0 || rest.empty()) return "";
  std::vector<std::string> commands;
  for (const CLI::App* command : parsed->get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(command->get_name());
  }
  return absl::StrFormat("%s: there is no command '%s'; there are %s", words, absl::CHexEscape(rest.front()),
                         absl::StrJoin(commands, ", "));
}

}  // namespace
}  // namespace smt::cli

int main(int argc, char** argv) {
  google::protobuf::SetLogHandler(nullptr);  // of text that is not UTF-8 the server says which field it is
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
  } catch (const CLI::RequiredError& error) {
    const std::string unknown = smt::cli::UnknownCommand(app);
    if (unknown.empty()) return app.exit(error) == 0 ? 0 : 2;
    absl::FPrintF(stderr, "%s\n", unknown);
    return 2;
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
