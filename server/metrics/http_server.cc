#include "server/metrics/http_server.h"

#include <CivetServer.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "model/base/strings.h"

namespace smt {
namespace {

class TextHandler : public CivetHandler {
 public:
  struct Reply {
    int code;
    const char* type;
    std::string body;
  };
  explicit TextHandler(std::function<Reply()> reply) : reply_(std::move(reply)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const Reply reply = reply_();
    mg_printf(connection, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", reply.code,
              reply.code == 200 ? "OK" : "Service Unavailable", reply.type, reply.body.size());
    mg_write(connection, reply.body.data(), reply.body.size());
    return true;
  }

 private:
  std::function<Reply()> reply_;
};

// Where a connection from this machine reaches a listener on `address`.
std::string LocalHost(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.starts_with('[')) host = host.substr(1, host.size() - 2);
  return host == "0.0.0.0" ? "127.0.0.1" : host == "::" ? "::1" : host;
}

}  // namespace

class HttpServer::Impl {
 public:
  explicit Impl(const Options& options)
      : host_(LocalHost(options.address)),
        metrics_([metrics = options.metrics] {
          return TextHandler::Reply{200, "text/plain; version=0.0.4; charset=utf-8", metrics()};
        }),
        health_([] {
          return TextHandler::Reply{200, "text/plain", "ok\n"};
        }),
        ready_([ready = options.ready] {
          return ready() ? TextHandler::Reply{200, "text/plain", "ready\n"}
                         : TextHandler::Reply{503, "text/plain", "not ready\n"};
        }),
        server_(std::vector<std::string>{"listening_ports", options.address, "num_threads", StrCat(options.threads)}) {
    server_.addHandler("/metrics", metrics_);
    server_.addHandler("/healthz", health_);
    server_.addHandler("/readyz", ready_);
  }
  // civetweb's listener looks only every two seconds whether it should stop, unless somebody connects.
  ~Impl() {
    std::atomic<bool> closed{false};
    std::thread waker([&, port = port()] {
      while (!closed) {
        char error[64];
        if (mg_connection* connection = mg_connect_client(host_.c_str(), port, 0, error, sizeof(error))) {
          mg_close_connection(connection);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    });
    server_.close();
    closed = true;
    waker.join();
  }

  int port() { return server_.getListeningPorts().at(0); }

 private:
  const std::string host_;
  TextHandler metrics_, health_, ready_;  // outlive the server's threads
  CivetServer server_;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;
int HttpServer::port() const { return impl_->port(); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(Options options) {
  try {
    return std::unique_ptr<HttpServer>(new HttpServer(std::make_unique<Impl>(options)));
  } catch (const std::exception& e) {
    return absl::UnavailableError(StrCat("cannot listen on ", options.address, ": ", e.what()));
  }
}

}  // namespace smt
