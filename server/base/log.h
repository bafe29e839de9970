// Structured logging: one JSON object a line on stderr.
//
//   LogInfo("generation finished", {{"session", name}, {"tokens", 12}});
//   {"ts":"2026-01-02T03:04:05.678Z","level":"info","msg":"generation finished","session":"a","tokens":12}
//
// Thread-safe. stdout stays free for what programs print on purpose. Bytes that are no UTF-8 are written as U+FFFD.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace smt {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

std::string_view Name(LogLevel level);                          // "debug" | "info" | "warning" | "error"
absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name);  // INVALID_ARGUMENT lists what is allowed

void SetLogLevel(LogLevel level);  // messages below it are dropped; kInfo at the start
LogLevel GetLogLevel();

// A field of a log line. Durations are written in seconds, statuses as "CODE: message".
struct LogField {
  using Value = std::variant<std::string, int64_t, double, bool>;
  LogField(std::string_view name, std::string_view text) : name(name), value(std::string(text)) {}
  LogField(std::string_view name, const char* text) : name(name), value(std::string(text)) {}
  LogField(std::string_view name, const std::string& text) : name(name), value(text) {}
  LogField(std::string_view name, bool flag) : name(name), value(flag) {}
  LogField(std::string_view name, int number) : name(name), value(int64_t{number}) {}
  LogField(std::string_view name, int64_t number) : name(name), value(number) {}
  LogField(std::string_view name, uint64_t number) : name(name), value(static_cast<int64_t>(number)) {}
  LogField(std::string_view name, double number) : name(name), value(number) {}
  LogField(std::string_view name, absl::Duration d) : name(name), value(absl::ToDoubleSeconds(d)) {}
  LogField(std::string_view name, const absl::Status& status) : name(name), value(status.ToString()) {}

  std::string name;
  Value value;
};

// The line without its newline; what Log writes.
std::string FormatLogLine(absl::Time time, LogLevel level, std::string_view message,
                          const std::vector<LogField>& fields);

void Log(LogLevel level, std::string_view message, std::vector<LogField> fields = {});

inline void LogDebug(std::string_view message, std::vector<LogField> fields = {}) {
  if (GetLogLevel() <= LogLevel::kDebug) Log(LogLevel::kDebug, message, std::move(fields));
}
inline void LogInfo(std::string_view message, std::vector<LogField> fields = {}) {
  Log(LogLevel::kInfo, message, std::move(fields));
}
inline void LogWarning(std::string_view message, std::vector<LogField> fields = {}) {
  Log(LogLevel::kWarning, message, std::move(fields));
}
inline void LogError(std::string_view message, std::vector<LogField> fields = {}) {
  Log(LogLevel::kError, message, std::move(fields));
}

}  // namespace smt
