// Arguments for CLI11, which takes the next argument as the value of "--name=". An empty value is split off, so that it
// stays one.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace smt {

// argv[1..], last first, as CLI::App::parse wants it.
inline std::vector<std::string> CliArguments(int argc, const char* const* argv) {
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    const bool empty_value =
        argument.size() > 3 && argument.starts_with("--") && argument.find('=') == argument.size() - 1;
    if (empty_value) argument.pop_back();
    arguments.push_back(std::move(argument));
    if (empty_value) arguments.emplace_back();
  }
  return {arguments.rbegin(), arguments.rend()};
}

}  // namespace smt
