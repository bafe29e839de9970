// Connecting to a Redis, and what must be so of one that is to hold sessions.
#include <algorithm>
#include <fstream>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/redis_client.h"

namespace smt::store_internal {
namespace {

constexpr int kOldestMajor = 6;

SteadyTime Now() { return std::chrono::steady_clock::now(); }

// What LearnPersistence wants to know.
std::vector<RedisCommand> AskPersistence() {
  return {{"CONFIG", "GET", "appendfsync"}, {"CONFIG", "GET", "no-appendfsync-on-rewrite"}};
}

}  // namespace

absl::StatusOr<std::string> RedisClient::Password() const {
  if (options_.password_file.empty()) return address_.password;
  std::ifstream in(options_.password_file);
  std::string line;
  if (!std::getline(in, line) || line.empty()) {
    return absl::FailedPreconditionError(
        StrCat("the Redis password cannot be read from '", options_.password_file, "': its first line must be it"));
  }
  if (line.back() == '\r') line.pop_back();
  return line;
}

absl::StatusOr<RedisEndpoint> RedisClient::AskSentinels(SteadyTime deadline) {
  absl::Status status = absl::UnavailableError("no Sentinel is reached");
  for (const RedisEndpoint& sentinel : address_.endpoints) {
    auto connection = RedisConnection::Connect(sentinel, tls_.get(), deadline);
    if (!connection.ok()) {
      status = connection.status();
      continue;
    }
    std::vector<RedisReply> replies;
    const RedisCommand ask = {"SENTINEL", "get-master-addr-by-name", options_.sentinel_master};
    status = (*connection)->Run({&ask, 1}, deadline, &replies);
    if (!status.ok()) {
      status = absl::UnavailableError(std::string(status.message()));
      continue;
    }
    if (replies[0].elements.size() == 2) {
      RedisEndpoint master;
      master.host = replies[0].elements[0].text;
      master.port = static_cast<int>(ToInt(replies[0].elements[1].text));
      return master;
    }
    status = absl::UnavailableError(
        StrCat("the Sentinel at ", ToString(sentinel), " knows no master '", options_.sentinel_master, "'"));
  }
  return status;
}

absl::StatusOr<RedisClient::Connection> RedisClient::Connect() {
  const SteadyTime deadline = Now() + absl::ToChronoMilliseconds(options_.connect_timeout);
  RedisEndpoint endpoint = address_.endpoints[0];
  if (!options_.sentinel_master.empty()) {
    ASSIGN_OR_RETURN(endpoint, AskSentinels(deadline));
  }
  ASSIGN_OR_RETURN(Connection connection, RedisConnection::Connect(endpoint, tls_.get(), deadline));
  absl::Status status = Greet(*connection, deadline);
  if (absl::IsDeadlineExceeded(status)) status = absl::UnavailableError(std::string(status.message()));
  absl::MutexLock lock(&mu_);
  if (absl::IsFailedPrecondition(status) && !format_.empty()) {
    // It has held the sessions. What keeps it from that now may pass, and is not the client's affair.
    unfit_ = status = absl::UnavailableError(std::string(status.message()));
  }
  if (!status.ok()) return status;
  return connection;
}

absl::Status RedisClient::Greet(RedisConnection& connection, SteadyTime deadline) {
  std::vector<RedisCommand> commands;
  ASSIGN_OR_RETURN(const std::string password, Password());
  if (!password.empty()) {
    const std::string& user = options_.user.empty() ? address_.user : options_.user;
    commands.push_back(user.empty() ? RedisCommand{"AUTH", password} : RedisCommand{"AUTH", user, password});
  }
  if (address_.database != 0) commands.push_back({"SELECT", std::to_string(address_.database)});
  const size_t greeting = commands.size();
  int64_t counted = 0;
  bool lapsed = false;
  {
    absl::MutexLock lock(&mu_);
    counted = counted_;
    lapsed = CounterMayHaveExpired();
    commands.push_back({"INFO"});
    commands.push_back({"GET", keys_.Format()});
    commands.push_back({"GET", keys_.Writer(instance_)});
  }
  for (RedisCommand& ask : AskPersistence()) commands.push_back(std::move(ask));
  commands.push_back({"CLIENT", "SETNAME", "smt-server"});
  std::vector<RedisReply> replies;
  RETURN_IF_ERROR(connection.Run(commands, deadline, &replies));
  for (size_t i = 0; i < greeting + 3; ++i) RETURN_IF_ERROR(StatusOf(replies[i]));
  const std::string& info = replies[greeting].text;
  RETURN_IF_ERROR(CheckServer(info));
  RETURN_IF_ERROR(LearnPersistence(info, {replies.begin() + static_cast<int64_t>(greeting) + 3, replies.end()}));

  const RedisReply& format = replies[greeting + 1];
  const RedisReply& counter = replies[greeting + 2];
  bool known = false;
  {
    absl::MutexLock lock(&mu_);
    known = !format_.empty();
  }
  if (!known) return format.is_nil() ? MakeFormat(connection, deadline) : TakeFormat(format.text);
  RETURN_IF_ERROR(CheckFormat(format));
  if (counted > 0 && !(lapsed && counter.is_nil()) && ToInt(counter.text) < counted) {
    return Rewound(connection, deadline);
  }
  return absl::OkStatus();
}

absl::Status RedisClient::CheckServer(std::string_view info) const {
  const auto bad = [&](std::string_view why) {
    return absl::FailedPreconditionError(StrCat(At(), " cannot hold the sessions: ", why));
  };
  const std::string_view version = InfoField(info, "redis_version");
  if (ToInt(version) < kOldestMajor) {
    return bad(StrCat("it is version ", version, ", at least ", kOldestMajor, ".0 is needed"));
  }
  if (InfoField(info, "cluster_enabled") == "1") return bad("it is in cluster mode, which is not supported");
  if (InfoField(info, "role") == "slave") {
    return bad(StrCat("it is a read-only replica of ", InfoField(info, "master_host"), ":",
                      InfoField(info, "master_port"), "; give the master's address"));
  }
  if (const std::string_view policy = InfoField(info, "maxmemory_policy"); policy != "noeviction") {
    return bad(StrCat("its maxmemory-policy is ", policy,
                      ", which removes sessions when memory is short; it must be "
                      "noeviction"));
  }
  return absl::OkStatus();
}

absl::Status RedisClient::LearnPersistence(std::string_view info, const std::vector<RedisReply>& config) {
  const auto setting = [&](size_t i) -> std::string_view {
    return i < config.size() && config[i].elements.size() == 2 ? std::string_view(config[i].elements[1].text) : "";
  };
  const bool aof = InfoField(info, "aof_enabled") == "1";
  const std::string_view fsync = setting(0), skips = setting(1);
  const bool always = aof && fsync == "always" && skips == "no";
  const std::string_view version = InfoField(info, "redis_version");
  const int64_t major = ToInt(version),
                minor = ToInt(version.substr(std::min(version.find('.'), version.size() - 1) + 1));
  const bool replicas = !options_.sentinel_master.empty() || ToInt(InfoField(info, "connected_slaves")) > 0;
  // With appendfsync no there is no sync to wait for: WAITAOF would time out.
  waitaof_ = aof && !always && fsync != "no" && (major > 7 || (major == 7 && minor >= 2));
  durable_ = (always || waitaof_) && !replicas;
  absl::MutexLock lock(&mu_);
  server_ = StrCat("version ", version, aof ? ", append-only file" : ", no append-only file",
                   fsync.empty() ? std::string() : StrCat(", appendfsync ", fsync), replicas ? ", with replicas" : "");
  return absl::OkStatus();
}

absl::Status RedisClient::Health() {
  RETURN_IF_ERROR(Replaced());
  {
    absl::MutexLock lock(&mu_);
    if (last_.ok() && Now() - looked_at_ < std::chrono::seconds(1)) return unfit_;
  }
  // Its settings can be changed while it runs, and replicas come and go.
  std::vector<RedisCommand> look = {{"INFO"}};
  for (RedisCommand& ask : AskPersistence()) look.push_back(std::move(ask));
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, Run(look, Effect::kLook));
  absl::Status unfit = StatusOf(replies[0]);
  if (unfit.ok()) unfit = CheckServer(replies[0].text);
  if (unfit.ok()) unfit = LearnPersistence(replies[0].text, {replies.begin() + 1, replies.end()});
  if (absl::IsFailedPrecondition(unfit)) unfit = absl::UnavailableError(std::string(unfit.message()));
  absl::MutexLock lock(&mu_);
  looked_at_ = Now();
  unfit_ = unfit;
  return unfit;
}

}  // namespace smt::store_internal
