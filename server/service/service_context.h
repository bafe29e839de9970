// What every handler works with. Made by main (or a test), outlives the gRPC server.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "model/config.h"
#include "server/base/thread_pool.h"
#include "server/engine/engine.h"
#include "server/metrics/server_metrics.h"
#include "server/service/generation_registry.h"
#include "server/service/request_limits.h"
#include "server/service/text_codec.h"
#include "server/service/transfer_budget.h"
#include "server/session/session_manager.h"
#include "smt/v1/model_service.pb.h"

namespace smt {

struct ServiceContext {
  Engine* engine = nullptr;
  SessionManager* sessions = nullptr;
  const TextCodec* codec = nullptr;
  ServerMetrics* metrics = nullptr;
  ThreadPool* pool = nullptr;     // blocking work: store I/O, tokenising
  ThreadPool* waiters = nullptr;  // requests that wait for a session's writer, so that they cannot fill `pool`
  RequestLimits limits;
  std::string backup_dir;    // empty: no backups
  int32_t max_queue = 1024;  // waiting requests, as in Engine::Options
  std::optional<int32_t> bos, eos;
  v1::Model model;            // what GetModel answers
  StrideHybridConfig config;  // of the model: the shapes of a session file
  // Set while the server goes down: new generations are refused with UNAVAILABLE.
  std::atomic<bool> draining{false};
  GenerationRegistry registry;
  TransferBudget transfers;
  std::atomic<int32_t> verifications{0};  // running
};

// UNAVAILABLE with RetryInfo while the server drains or after its device failed.
absl::Status CheckServing(const ServiceContext& context);

}  // namespace smt
