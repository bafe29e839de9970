// The plaintext port for machines: /metrics (Prometheus text), /healthz (200 while the process answers) and /readyz
// (200 while it takes requests, else 503).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace smt {

class HttpServer {
 public:
  struct Options {
    std::string address;                   // "127.0.0.1:0", "0.0.0.0:9464", "[::1]:9464"; port 0 picks one
    std::function<std::string()> metrics;  // text of /metrics; any thread
    std::function<bool()> ready;           // any thread
    int threads = 2;
  };

  // UNAVAILABLE when the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(Options options);
  ~HttpServer();  // stops and joins

  int port() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace smt
