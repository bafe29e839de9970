// Opens a store on disk and writes to it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/store/rocksdb_store.h"

namespace smt {

inline absl::StatusOr<std::unique_ptr<SessionStore>> Open(const std::string& dir, rocksdb::Env* env = nullptr,
                                                          int64_t min_free_bytes = 0) {
  RocksDbStoreOptions options;
  options.dir = dir;
  options.env = env;
  options.min_free_bytes = min_free_bytes;
  return OpenRocksDbStore(options);
}
inline absl::Status Create(SessionStore& store, const std::string& id, uint64_t uid, std::vector<int32_t> ids = {},
                           bool sync = true) {
  SessionWrite w;
  w.kind = SessionWrite::Kind::kCreate;
  w.key = {id, uid};
  w.header = "header of " + id;
  w.position = 0;
  w.ids = std::move(ids);
  w.requests = {{"r", "record"}};
  return store.Commit({&w, 1}, sync)[0];
}
inline absl::Status Append(SessionStore& store, const std::string& id, uint64_t uid, int64_t position,
                           std::vector<int32_t> ids) {
  SessionWrite w;
  w.key = {id, uid};
  w.position = position;
  w.ids = std::move(ids);
  return store.Commit({&w, 1}, true)[0];
}

}  // namespace smt
