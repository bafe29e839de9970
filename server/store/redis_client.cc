#include "server/store/redis_client.h"

#include <openssl/evp.h>

#include <algorithm>
#include <charconv>
#include <thread>

#include "absl/time/clock.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/log.h"
#include "server/base/status_details.h"

namespace smt::store_internal {
namespace {

constexpr std::chrono::milliseconds kRetryPause{50};
constexpr absl::Duration kLookTimeout = absl::Seconds(1);
constexpr int kMostScriptLoads = 3;

SteadyTime Now() { return std::chrono::steady_clock::now(); }
SteadyTime After(absl::Duration d) { return Now() + absl::ToChronoMilliseconds(d); }

std::string Sha1Hex(std::string_view text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha1(), nullptr);
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (unsigned i = 0; i < size; ++i) {
    out.push_back(kDigits[digest[i] >> 4]);
    out.push_back(kDigits[digest[i] & 15]);
  }
  return out;
}

bool Has(std::string_view text, std::string_view what) { return text.find(what) != std::string_view::npos; }

// That whoever answers is not, or not now, the master: the next connection may find it.
bool MeansElsewhere(const RedisReply& reply) {
  return reply.is_error() && (reply.text.starts_with("READONLY") || reply.text.starts_with("LOADING") ||
                              reply.text.starts_with("MASTERDOWN") || reply.text.starts_with("UNBLOCKED"));
}

bool ForgotScript(const RedisReply& reply) { return reply.is_error() && reply.text.starts_with("NOSCRIPT"); }

}  // namespace

int64_t ToInt(std::string_view text) {
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

std::string_view InfoField(std::string_view info, std::string_view name) {
  for (size_t at = info.find(name); at != std::string_view::npos; at = info.find(name, at + 1)) {
    const size_t colon = at + name.size();
    if ((at != 0 && info[at - 1] != '\n') || colon >= info.size() || info[colon] != ':') continue;
    return info.substr(colon + 1, info.find_first_of("\r\n", colon) - colon - 1);
  }
  return {};
}

class RedisClient::Borrowed {
 public:
  Borrowed(RedisClient* client, Lane lane) : client_(client), pool_(&client->pools_[static_cast<size_t>(lane)]) {
    absl::MutexLock lock(&client_->pool_mu_);
    client_->pool_mu_.Await(absl::Condition(pool_, &Pool::HasRoom));
    ++pool_->in_use;
    while (connection_ == nullptr && !pool_->idle.empty()) {
      connection_ = std::move(pool_->idle.back());
      pool_->idle.pop_back();
      if (connection_->Stale()) connection_.reset();
    }
  }
  ~Borrowed() {
    absl::MutexLock lock(&client_->pool_mu_);
    --pool_->in_use;
    if (connection_ != nullptr) pool_->idle.push_back(std::move(connection_));
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  Connection& connection() { return connection_; }

 private:
  RedisClient* const client_;
  Pool* const pool_;
  Connection connection_;
};

RedisClient::RedisClient(RedisStoreOptions options, RedisAddress address, std::shared_ptr<SSL_CTX> tls)
    : options_(std::move(options)),
      address_(std::move(address)),
      tls_(std::move(tls)),
      keys_(options_.prefix),
      instance_(RandomHex(16)),
      renewed_at_(Now()),
      looked_at_(Now()) {
  for (size_t i = 0; i < kRedisScripts; ++i) digests_.push_back(Sha1Hex(RedisScriptText(static_cast<RedisScript>(i))));
  pools_[static_cast<size_t>(Lane::kShared)].limit = static_cast<size_t>(options_.connections);
}

RedisClient::~RedisClient() = default;

absl::StatusOr<std::unique_ptr<RedisClient>> RedisClient::Open(RedisStoreOptions options) {
  if (const auto errors = options.Validate(); !errors.empty()) {
    return absl::InvalidArgumentError(StrCat("Redis store: ", StrJoin(errors, "; ")));
  }
  ASSIGN_OR_RETURN(RedisAddress address, ParseRedisAddress(options.address));
  std::shared_ptr<SSL_CTX> tls;
  if (address.tls || !options.tls_ca.empty() || !options.tls_cert.empty()) {
    ASSIGN_OR_RETURN(tls, NewRedisTlsContext({options.tls_ca, options.tls_cert, options.tls_key}));
  }
  const SteadyTime deadline = After(options.wait_at_start);
  auto client = std::unique_ptr<RedisClient>(new RedisClient(std::move(options), std::move(address), std::move(tls)));
  for (bool told = false;; told = true) {
    Borrowed borrowed(client.get(), Lane::kCommit);
    auto connection = client->Connect();
    if (connection.ok()) {
      borrowed.connection() = *std::move(connection);
      return client;
    }
    if (!absl::IsUnavailable(connection.status()) || Now() >= deadline) return connection.status();
    if (!told) LogWarning("waiting for Redis", {{"reason", connection.status()}});
    std::this_thread::sleep_for(10 * kRetryPause);
  }
}

RedisCommand RedisClient::Script(RedisScript script, const Words& keys, Words arguments) const {
  RedisCommand out = {"EVALSHA", digests_[static_cast<size_t>(script)], std::to_string(keys.size())};
  out.reserve(3 + keys.size() + arguments.size());
  out.insert(out.end(), keys.begin(), keys.end());
  for (std::string& argument : arguments) out.push_back(std::move(argument));
  return out;
}

absl::StatusOr<RedisReply> RedisClient::Run(RedisCommand command, Effect effect, Lane lane, absl::Duration wait) {
  ASSIGN_OR_RETURN(std::vector<RedisReply> replies,
                   Run(std::span<const RedisCommand>(&command, 1), effect, lane, wait));
  RETURN_IF_ERROR(StatusOf(replies[0]));
  return std::move(replies[0]);
}

absl::StatusOr<std::vector<RedisReply>> RedisClient::Run(std::span<const RedisCommand> commands, Effect effect,
                                                         Lane lane, absl::Duration wait) {
  std::vector<RedisReply> replies;
  if (commands.empty()) return replies;
  Borrowed borrowed(this, lane);
  const SteadyTime give_up = After(options_.recover_timeout);
  const bool reads = effect == Effect::kRead || effect == Effect::kLook;
  const absl::Duration patience =
      effect == Effect::kLook ? std::min(kLookTimeout, options_.command_timeout) : options_.command_timeout + wait;
  int sent = effect == Effect::kFinish ? 1 : 0, loads = 0;
  bool load = false;
  for (;;) {
    RETURN_IF_ERROR(Replaced());
    if (!reads && sent == 0 && !Unfit().ok()) RETURN_IF_ERROR(Health());  // which looks again, once a second
    absl::Status status;
    if (borrowed.connection() == nullptr) {
      auto connection = Connect();
      status = connection.status();
      if (connection.ok()) borrowed.connection() = *std::move(connection);
      if (!status.ok() && (sent == 0 || reads)) {
        Note(status);
        return status;  // nothing was written
      }
    }
    if (status.ok()) {
      const SteadyTime deadline = After(patience);
      if (load) status = LoadScripts(*borrowed.connection(), deadline);
      if (status.ok()) status = borrowed.connection()->Run(commands.subspan(replies.size()), deadline, &replies);
      ++sent;
      if (!status.ok()) borrowed.connection().reset();
    }
    Note(status);
    if (status.ok()) {
      // A server that was restarted, or told to, has forgotten the scripts. From there on everything is sent again: the
      // last command says that those before it were carried out.
      const auto forgotten = std::find_if(replies.begin(), replies.end(), &ForgotScript);
      load = forgotten != replies.end();
      if (!load || ++loads > kMostScriptLoads) break;
      replies.erase(forgotten, replies.end());
      continue;
    }
    if (reads ? sent >= (effect == Effect::kRead ? 2 : 1) : Now() >= give_up) {
      return reads ? absl::UnavailableError(std::string(status.message()))
                   : absl::UnavailableError(
                         StrCat(std::string(status.message()), "; what was being written may or may not be written"));
    }
    if (!reads) std::this_thread::sleep_for(kRetryPause);
  }
  if (std::any_of(replies.begin(), replies.end(), &MeansElsewhere)) {
    borrowed.connection().reset();
    DropIdle();
  }
  return replies;
}

absl::Status RedisClient::LoadScripts(RedisConnection& connection, SteadyTime deadline) const {
  std::vector<RedisCommand> commands;
  for (size_t i = 0; i < kRedisScripts; ++i) {
    commands.push_back({"SCRIPT", "LOAD", RedisScriptText(static_cast<RedisScript>(i))});
  }
  std::vector<RedisReply> replies;
  RETURN_IF_ERROR(connection.Run(commands, deadline, &replies));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(StatusOf(reply));
  return absl::OkStatus();
}

void RedisClient::DropIdle() {
  absl::MutexLock lock(&pool_mu_);
  for (Pool& pool : pools_) pool.idle.clear();
}

absl::Status RedisClient::StatusOf(const RedisReply& reply) const {
  if (!reply.is_error()) return absl::OkStatus();
  const std::string& text = reply.text;
  if (Has(text, "OOM command not allowed")) {
    return absl::ResourceExhaustedError(StrCat("no memory left for the store: ", At(),
                                               " has reached its maxmemory; nothing was written, give it more"));
  }
  if (text.starts_with("MISCONF") && Has(text, "No space left")) {
    return absl::ResourceExhaustedError(StrCat("no space left for the store: ", At(), ": ", text));
  }
  if (text.starts_with("READONLY")) {
    return absl::UnavailableError(StrCat(At(), " is a read-only replica now; give the master's address"));
  }
  if (text.starts_with("NOPERM") || text.starts_with("NOAUTH") || text.starts_with("WRONGPASS")) {
    return absl::FailedPreconditionError(StrCat(At(), " refuses: ", text));
  }
  if (text.starts_with("WRONGTYPE")) {
    return absl::DataLossError(StrCat(At(), ": a key of the store is of another type than it was written: ", text));
  }
  return absl::UnavailableError(StrCat(At(), " answers: ", text));
}

std::string RedisClient::At() const { return StrCat("Redis at ", ToString(address_.endpoints[0])); }

void RedisClient::Note(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  last_ = status;
}

std::string RedisClient::Description() const {
  absl::MutexLock lock(&mu_);
  return StrCat(At(), ", ", server_);
}

absl::Status RedisClient::Unfit() const {
  absl::MutexLock lock(&mu_);
  return unfit_;
}

int64_t RedisClient::FreeBytes() {
  const auto info = Run(RedisCommand{"INFO", "memory"}, Effect::kLook);
  if (!info.ok()) return -1;
  const int64_t most = ToInt(InfoField(info->text, "maxmemory"));
  return most == 0 ? -1 : std::max<int64_t>(0, most - ToInt(InfoField(info->text, "used_memory")));
}

}  // namespace smt::store_internal
