// Runs `smt` against a server, as a person does.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/e2e/server_process.h"
#include "tests/testing/process.h"

namespace smt::testing {

struct Result {
  int code = -1;  // -1: it did not end within a minute
  std::string out, err;
};

inline Result RunSmt(const std::string& address, std::vector<std::string> args, const std::string& input = "") {
  TempDir dir;
  Process::Options options;
  options.argv = {BinDir() + "/smt"};
  options.environment = {"SMT_ADDRESS=" + address};
  options.argv.insert(options.argv.end(), args.begin(), args.end());
  options.stdin_text = input;
  options.output_dir = dir.path();
  auto process = Process::Start(options);
  Result result;
  if (auto code = process->Wait(absl::Seconds(60)); code.ok()) result.code = *code;
  result.out = process->Stdout();
  result.err = process->Stderr();
  return result;
}

}  // namespace smt::testing
