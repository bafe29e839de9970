// Configuration files of the server, YAML or JSON, against flags of every type.
#include <string>

#include "absl/flags/flag.h"
#include "absl/time/time.h"
#include "server/base/flag_sources.h"
#include "tests/fuzz/fuzz_target.h"

ABSL_FLAG(bool, fuzz_bool, false, "");
ABSL_FLAG(int32_t, fuzz_int32, 0, "");
ABSL_FLAG(int64_t, fuzz_int64, 0, "");
ABSL_FLAG(double, fuzz_double, 0, "");
ABSL_FLAG(std::string, fuzz_string, "", "");
ABSL_FLAG(absl::Duration, fuzz_duration, absl::ZeroDuration(), "");

namespace smt::fuzz {
namespace {

void Run(std::string_view bytes) {
  const FlagSourcesOptions options{.file_part = "tests/fuzz/"};
  const absl::Status file = ApplyConfigText(bytes, "fuzz.yaml", options);
  FUZZ_CHECK(file.ok() || absl::IsInvalidArgument(file));
  const absl::Status environment =
      ApplyEnvironment({"SMT_FUZZ_INT32=" + std::string(bytes), std::string(bytes)}, options);
  FUZZ_CHECK(environment.ok() || absl::IsInvalidArgument(environment));
}

std::vector<std::string> Seeds() {
  return {"fuzz_bool: true\nfuzz_int32: -7\nfuzz_double: 1e3\nfuzz_duration: 1h30m\nfuzz_string: 'text'\n",
          R"({"fuzz_int64": 9223372036854775807, "fuzz_string": "a\u00e9", "unknown": [1, {"x": null}]})",
          "--- # comment\n? fuzz_bool\n: &a !!str yes\nfuzz_string: |\n  two\n  lines\n", "SMT_FUZZ_DURATION=5s"};
}

}  // namespace

extern const FuzzTarget flags_target;
const FuzzTarget flags_target = {"flags", Run, Seeds};

}  // namespace smt::fuzz
