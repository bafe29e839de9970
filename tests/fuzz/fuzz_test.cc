// Every fuzz target on its seeds, on the inputs of past bugs and on mutations of both, the same ones each time: keeps
// what libFuzzer (scripts/fuzz) found, without clang. A target that aborts leaves its input in a file that is named.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

constexpr int kMutants = 20'000;
constexpr size_t kLongest = 4096;

// What runs now, for the signal handler.
std::string* g_input = nullptr;
char g_path[4096];

void SaveInput(int signal) {
  if (g_input != nullptr) {
    const int fd = ::open(g_path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (fd >= 0 && ::write(fd, g_input->data(), g_input->size()) == static_cast<ssize_t>(g_input->size())) {
      for (const char* const part : {"the input is in ", static_cast<const char*>(g_path), "\n"}) {
        if (::write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
      }
    }
  }
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void Mutate(std::mt19937_64& rng, const std::vector<std::string>& corpus, std::string* bytes) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : static_cast<size_t>(rng() % n); };
  const size_t at = below(bytes->size() + 1);
  switch (below(8)) {
    case 0:
      if (at < bytes->size()) (*bytes)[at] = static_cast<char>((*bytes)[at] ^ 1 << below(8));
      break;
    case 1:
      if (at < bytes->size()) (*bytes)[at] = static_cast<char>(below(256));
      break;
    case 2:
      bytes->insert(at, 1 + below(4), static_cast<char>(below(256)));
      break;
    case 3:
      bytes->erase(at, 1 + below(8));
      break;
    case 4:
      bytes->resize(at);
      break;
    case 5:  // a piece of it again
      bytes->insert(at, bytes->substr(below(bytes->size() + 1), 1 + below(32)));
      break;
    case 6: {  // a number at the edge
      static constexpr uint64_t kNumbers[] = {
          0, 1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, INT64_MAX, uint64_t{1} << 63, UINT64_MAX};
      const uint64_t number = kNumbers[below(std::size(kNumbers))];
      const size_t width = size_t{1} << below(4);
      if (at + width <= bytes->size()) std::memcpy(bytes->data() + at, &number, width);
      break;
    }
    default: {  // goes on as another one does
      const std::string& other = corpus[below(corpus.size())];
      bytes->resize(at);
      bytes->append(other.substr(below(other.size() + 1)));
    }
  }
  if (bytes->size() > kLongest) bytes->resize(kLongest);
}

class FuzzTest : public testing::TestWithParam<FuzzTarget> {
 protected:
  void SetUp() override {
    const std::string path = testing::TempDir() + "fuzz-failure-" + std::string(GetParam().name);
    path.copy(g_path, sizeof(g_path) - 1);
    g_path[std::min(path.size(), sizeof(g_path) - 1)] = '\0';
    for (const int signal : {SIGABRT, SIGSEGV, SIGFPE, SIGBUS})
      before_.emplace_back(signal, std::signal(signal, SaveInput));
  }
  void TearDown() override {
    g_input = nullptr;
    for (const auto& [signal, handler] : before_) std::signal(signal, handler);
  }
  static void Run(std::string input) {
    g_input = &input;
    GetParam().run(input);
    g_input = nullptr;
  }
  static std::vector<std::string> Corpus() {
    std::vector<std::string> out = GetParam().seeds();
    std::vector<std::filesystem::path> files;
    std::error_code none;
    const std::string dir = SMT_SOURCE_DIR "/tests/fuzz/corpus/" + std::string(GetParam().name);
    for (const auto& file : std::filesystem::directory_iterator(dir, none)) files.push_back(file.path());
    std::sort(files.begin(), files.end());
    for (const auto& file : files) {
      std::ifstream in(file, std::ios::binary);
      out.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
    return out;
  }

 private:
  std::vector<std::pair<int, void (*)(int)>> before_;
};

TEST_P(FuzzTest, KeepsItsPromisesOnSeedsPastBugsAndTheirMutations) {
  const std::vector<std::string> corpus = Corpus();
  ASSERT_FALSE(corpus.empty());
  Run("");
  for (const std::string& input : corpus) Run(input);
  std::mt19937_64 rng(1);
  for (int i = 0; i < kMutants; ++i) {
    std::string input = corpus[rng() % corpus.size()];
    for (uint64_t n = 1 + rng() % 4; n > 0; --n) Mutate(rng, corpus, &input);
    Run(std::move(input));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzTest, testing::ValuesIn(FuzzTargets().begin(), FuzzTargets().end()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace smt::fuzz
