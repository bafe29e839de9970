#include "server/metrics/http_server.h"

#include <CivetServer.h>

#include <utility>
#include <vector>

#include "server/base/strings.h"

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

}  // namespace

class HttpServer::Impl {
 public:
  explicit Impl(const Options& options)
      : metrics_([metrics = options.metrics] {
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
  ~Impl() { server_.close(); }

  int port() { return server_.getListeningPorts().at(0); }

 private:
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
