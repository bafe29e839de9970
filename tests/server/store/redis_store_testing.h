// What the tests of a store in a Redis have in common: writes, and a Redis with a store in it.
#pragma once

#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/base/status_details.h"
#include "server/store/redis_keys.h"
#include "server/store/redis_store.h"
#include "tests/server/store/redis_testing.h"
#include "tests/server/store/status_testing.h"

namespace smt {

using Kind = SessionWrite::Kind;
using Settings = std::vector<std::string>;

inline const Settings kDurable = {"--appendonly", "yes", "--appendfsync", "always"};

inline SessionWrite Create(const std::string& id, uint64_t uid, std::vector<int32_t> ids = {}) {
  SessionWrite w;
  w.kind = Kind::kCreate;
  w.key = {id, uid};
  w.header = "header of " + id;
  w.position = 0;
  w.ids = std::move(ids);
  w.requests = {{"r", "record"}};
  return w;
}
inline SessionWrite Append(const std::string& id, uint64_t uid, int64_t position, std::vector<int32_t> ids) {
  SessionWrite w;
  w.key = {id, uid};
  w.position = position;
  w.ids = std::move(ids);
  return w;
}
inline SessionWrite Header(const std::string& id, uint64_t uid, std::string header) {
  SessionWrite w;
  w.key = {id, uid};
  w.header = std::move(header);
  return w;
}
inline SessionWrite Remove(const std::string& id, uint64_t uid) {
  SessionWrite w;
  w.kind = Kind::kRemove;
  w.key = {id, uid};
  return w;
}
inline StoreReference Log(const std::string& id, uint64_t uid, int64_t position, int64_t branch = 0) {
  return {StoreReference::Kind::kLog, {id, uid}, branch, position};
}
inline StoreReference Snapshot(const std::string& id, uint64_t uid, int64_t position) {
  return {StoreReference::Kind::kSnapshot, {id, uid}, 0, position};
}
inline absl::Status Commit(SessionStore& store, SessionWrite w, bool sync = true) {
  return store.Commit({&w, 1}, sync)[0];
}

MATCHER(IsReplaced, "is UNAVAILABLE because the store is another one") {
  *result_listener << StatusOf(arg).ToString();
  return absl::IsUnavailable(StatusOf(arg)) && GetDetails(StatusOf(arg)).reason == kStoreReplaced;
}

class RedisStoreTest : public testing::Test {
 protected:
  void SetUp() override { SMT_SKIP_WITHOUT_REDIS(); }
  void Serve(Settings settings = {}) { server_ = RedisServer::Start(std::move(settings)); }
  std::unique_ptr<RedisStore> Open() { return Open(server_->Options()); }
  static std::unique_ptr<RedisStore> Open(const RedisStoreOptions& options) {
    auto store = OpenRedisStore(options);
    EXPECT_OK(store);
    return store.ok() ? *std::move(store) : nullptr;
  }
  std::unique_ptr<RedisServer> server_;
  const store_internal::RedisKeys keys_{"smt:"};
};

}  // namespace smt
