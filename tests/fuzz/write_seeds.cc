// smt_fuzz_seeds DIR: writes each target's seeds into DIR/<target>, for libFuzzer to begin from.
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/fuzz/fuzz_target.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: smt_fuzz_seeds DIR\n");
    return 2;
  }
  for (const auto& target : smt::fuzz::FuzzTargets()) {
    const std::filesystem::path dir = std::filesystem::path(argv[1]) / target.name;
    std::filesystem::create_directories(dir);
    int n = 0;
    for (const std::string& seed : target.seeds()) {
      std::ofstream(dir / ("seed-" + std::to_string(++n)), std::ios::binary) << seed;
    }
  }
  return 0;
}
