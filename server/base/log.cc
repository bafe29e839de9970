#include "server/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <array>
#include <atomic>
#include <nlohmann/json.hpp>
#include <utility>

#include "model/base/strings.h"

namespace smt {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"debug", "info", "warning", "error"};

std::atomic<LogLevel> g_level{LogLevel::kInfo};

// spdlog only carries finished lines: it locks, writes and flushes them.
spdlog::logger& Sink() {
  static spdlog::logger* logger = [] {
    auto* made = new spdlog::logger("smt", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->set_level(spdlog::level::trace);
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *logger;
}

}  // namespace

std::string_view Name(LogLevel level) { return kNames[static_cast<size_t>(level)]; }

absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<LogLevel>(i);
  }
  return absl::InvalidArgumentError(StrCat("log level '", name, "' is none of debug, info, warning, error"));
}

void SetLogLevel(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }
LogLevel GetLogLevel() { return g_level.load(std::memory_order_relaxed); }

std::string FormatLogLine(absl::Time time, LogLevel level, std::string_view message,
                          const std::vector<LogField>& fields) {
  nlohmann::ordered_json line;
  line["ts"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
  line["level"] = Name(level);
  line["msg"] = message;
  for (const LogField& field : fields) {
    std::visit([&](const auto& value) { line[field.name] = value; }, field.value);
  }
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void Log(LogLevel level, std::string_view message, std::vector<LogField> fields) {
  if (level < GetLogLevel()) return;
  Sink().log(spdlog::level::info, "{}", FormatLogLine(absl::Now(), level, message, fields));
}

}  // namespace smt
