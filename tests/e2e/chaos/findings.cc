#include "tests/e2e/chaos/findings.h"

#include <cstdio>

#include "absl/strings/str_format.h"

namespace smt::testing {

thread_local int64_t Findings::own_ = 0;

void Findings::Say(const std::string& text) const {
  std::fputs(absl::StrFormat("[%7.2f] %s\n", absl::ToDoubleSeconds(elapsed()), text).c_str(), stderr);
}

void Findings::Fail(std::atomic<int64_t>& count, const std::string& what, int64_t n) {
  count += n;
  ++own_;
  Say("FAILED: " + what);
}

void Findings::Note(const std::string& what) {
  absl::MutexLock lock(&mu_);
  ++notes_[what];
}

nlohmann::ordered_json Findings::Summary() const {
  nlohmann::ordered_json summary;
#define SMT_CHAOS_COUNT(name) summary[#name] = name.load();
  SMT_CHAOS_COUNTS(SMT_CHAOS_COUNT)
#undef SMT_CHAOS_COUNT
  absl::MutexLock lock(&mu_);
  if (!notes_.empty()) summary["notes"] = notes_;
  return summary;
}

}  // namespace smt::testing
