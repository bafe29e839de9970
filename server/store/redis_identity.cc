// Which store a Redis holds, and whether it has lost something: the format record, which names the incarnation, and the
// writers' counters.
#include <algorithm>
#include <random>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/log.h"
#include "server/base/status_details.h"
#include "server/store/redis_client.h"

namespace smt::store_internal {
namespace {

constexpr std::string_view kFormatName = "smt-session-store";
constexpr int kFormatVersion = 1;
constexpr int kCounterDays = 7;  // how long a writer's counter is kept after its last commit
constexpr std::chrono::hours kCounterRenewal{1};

SteadyTime Now() { return std::chrono::steady_clock::now(); }

}  // namespace

std::string RandomHex(size_t digits) {
  std::random_device device;
  std::string out;
  while (out.size() < digits) out += UidText(uint64_t{device()} << 32 | device());
  out.resize(digits);
  return out;
}

absl::Status RedisClient::MakeFormat(RedisConnection& connection, SteadyTime deadline) {
  RedisCommand indexes = {"EXISTS"};
  for (uint64_t i = 0; i < kIndexShards; ++i) indexes.push_back(keys_.Index(i));
  const std::vector<RedisCommand> look = {indexes};
  std::vector<RedisReply> replies;
  RETURN_IF_ERROR(connection.Run(look, deadline, &replies));
  RETURN_IF_ERROR(StatusOf(replies[0]));
  if (replies[0].number != 0) {
    return absl::DataLossError(StrCat(At(), " holds sessions under '", options_.prefix, "' but no '", keys_.Format(),
                                      "', so part of the store is missing"));
  }
  const std::vector<RedisCommand> make = {
      {"SET", keys_.Format(), StrCat(kFormatName, " ", kFormatVersion, " ", RandomHex(32)), "NX"},
      {"GET", keys_.Format()}};
  replies.clear();
  RETURN_IF_ERROR(connection.Run(make, deadline, &replies));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(StatusOf(reply));
  return TakeFormat(replies[1].text);
}

absl::Status RedisClient::TakeFormat(std::string_view record) {
  std::string_view rest = record;
  const auto word = [&rest] {
    const size_t space = std::min(rest.find(' '), rest.size());
    const std::string_view out = rest.substr(0, space);
    rest.remove_prefix(std::min(space + 1, rest.size()));
    return out;
  };
  const std::string_view name = word(), version = word(), incarnation = word();
  const int64_t number = ToInt(version);
  if (name != kFormatName || number < 1 || (number == kFormatVersion && incarnation.size() != 32)) {
    return absl::DataLossError(StrCat(At(), ": '", keys_.Format(), "' must read \"", kFormatName,
                                      " <version> <incarnation>\", it is damaged or not a session store's"));
  }
  if (number > kFormatVersion) {
    return absl::FailedPreconditionError(StrCat(At(), " holds a store of format version ", number,
                                                ", this server reads up to version ", kFormatVersion,
                                                "; use the newer server"));
  }
  absl::MutexLock lock(&mu_);
  format_ = record;
  incarnation_ = incarnation;
  return absl::OkStatus();
}

absl::Status RedisClient::CheckFormat(const RedisReply& format) {
  RETURN_IF_ERROR(StatusOf(format));
  {
    absl::MutexLock lock(&mu_);
    if (!format.is_nil() && format.text == format_) return absl::OkStatus();
  }
  return LatchReplaced(format.is_nil() ? "it has been emptied" : "it holds another store than before");
}

absl::Status RedisClient::Rewound(RedisConnection& connection, SteadyTime deadline) {
  std::string format;
  {
    absl::MutexLock lock(&mu_);
    format = format_;
  }
  // The others find out by it; who comes second finds it done.
  const RedisCommand replace = {"EVAL", RedisScriptText(RedisScript::kReplace),
                                "1",    keys_.Format(),
                                format, StrCat(kFormatName, " ", kFormatVersion, " ", RandomHex(32))};
  std::vector<RedisReply> replies;
  RETURN_IF_ERROR(connection.Run({&replace, 1}, deadline, &replies));
  RETURN_IF_ERROR(StatusOf(replies[0]));
  return LatchReplaced("it came back without writes that it had acknowledged");
}

absl::Status RedisClient::LatchReplaced(std::string_view why) {
  absl::MutexLock lock(&mu_);
  if (!replaced_.ok()) return replaced_;
  replaced_ = WithDetails(
      absl::UnavailableError(StrCat(At(), " is not the store that this server opened: ", why,
                                    "; nothing is read from it or written to it until the server begins anew")),
      {.reason = kStoreReplaced});
  LogError("the store was replaced", {{"reason", replaced_}});
  return replaced_;
}

absl::Status RedisClient::Replaced() const {
  absl::MutexLock lock(&mu_);
  return replaced_;
}

absl::Status RedisClient::Adopt() {
  DropIdle();
  {
    absl::MutexLock lock(&mu_);
    replaced_ = absl::OkStatus();
    format_.clear();
    incarnation_.clear();
    instance_ = RandomHex(16);
    counted_ = 0;
  }
  return Connect().status();  // which takes the format record that is there, or makes one
}

std::string RedisClient::instance() const {
  absl::MutexLock lock(&mu_);
  return instance_;
}
std::string RedisClient::incarnation() const {
  absl::MutexLock lock(&mu_);
  return incarnation_;
}

// INCR and not the number itself: one that is carried out late, from a connection given up, must not lower it.
void RedisClient::AddCount(std::vector<RedisCommand>* commands) {
  absl::MutexLock lock(&mu_);
  const std::string key = keys_.Writer(instance_), seconds = std::to_string(kCounterDays * 86400);
  if (counted_ == 0) commands->push_back({"SET", key, "0", "EX", seconds, "NX"});
  if (counted_ == 0 || Now() - renewed_at_ > kCounterRenewal) {
    commands->push_back({"EXPIRE", key, seconds});
    renewed_at_ = Now();
  }
  commands->push_back({"INCR", key});
}

bool RedisClient::CounterMayHaveExpired() const {
  return Now() - renewed_at_ > std::chrono::hours(24 * (kCounterDays - 1));
}

void RedisClient::Counted(const RedisReply& reply) {
  if (reply.is_error()) return;  // without memory to spare it does not count, and nothing was written
  absl::MutexLock lock(&mu_);
  counted_ = std::max(counted_, reply.number);
}

}  // namespace smt::store_internal
