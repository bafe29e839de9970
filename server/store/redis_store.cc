#include "server/store/redis_store.h"

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/redis_address.h"
#include "server/store/redis_store_impl.h"

namespace smt {

std::vector<std::string> RedisStoreOptions::Validate() const {
  std::vector<std::string> errors;
  const auto parsed = ParseRedisAddress(address);
  if (!parsed.ok()) errors.push_back(StrCat("address: ", std::string(parsed.status().message())));
  if (parsed.ok() && parsed->endpoints.size() > 1 && sentinel_master.empty()) {
    errors.emplace_back("address: several hosts are of Sentinels, whose master must be named");
  }
  if (tls_cert.empty() != tls_key.empty()) {
    errors.emplace_back("tls_cert: needs its key, and the key needs it");
  }
  if (prefix.find_first_of("{}") != std::string::npos) errors.emplace_back("prefix: must have no braces");
  if (connections < 1 || connections > 1024)
    errors.push_back(StrCat("connections: ", connections, " must be 1 to 1024"));
  const auto at_least = [&](const char* name, absl::Duration value, absl::Duration least) {
    if (value < least) {
      errors.push_back(
          StrCat(name, ": ", absl::FormatDuration(value), " must be at least ", absl::FormatDuration(least)));
    }
  };
  at_least("connect_timeout", connect_timeout, absl::Milliseconds(1));
  at_least("command_timeout", command_timeout, absl::Milliseconds(1));
  at_least("recover_timeout", recover_timeout, absl::ZeroDuration());
  at_least("sweep_interval", sweep_interval, absl::Milliseconds(1));
  return errors;
}

absl::StatusOr<std::unique_ptr<RedisStore>> OpenRedisStore(RedisStoreOptions options) {
  ASSIGN_OR_RETURN(auto client, store_internal::RedisClient::Open(std::move(options)));
  return std::make_unique<store_internal::RedisStoreImpl>(std::move(client));
}

namespace store_internal {

RedisStoreImpl::RedisStoreImpl(std::unique_ptr<RedisClient> client)
    : client_(std::move(client)), keys_(client_->keys()), sweep_thread_([this] { SweepLoop(); }) {}

RedisStoreImpl::~RedisStoreImpl() {
  {
    absl::MutexLock lock(&sweep_mu_);
    stop_ = true;
  }
  sweep_thread_.join();
  // What was put off, and the counter that nobody will ask for.
  absl::MutexLock lock(&commit_mu_);
  deferred_.push_back({"DEL", keys_.Writer(client_->instance())});
  if (client_->Replaced().ok()) client_->Run(deferred_, Effect::kRead, Lane::kCommit).IgnoreError();
}

}  // namespace store_internal
}  // namespace smt
