#include "tests/e2e/proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace smt::testing {
namespace {

constexpr size_t kMostQueued = 256 << 10;
constexpr int kTickMs = 5;  // how often pieces that are due and changed settings are looked at

sockaddr_in Loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

// Children must not inherit them: a connection is closed only when its last owner closes it.
int NewSocket() { return ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }

void SendAtOnce(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

}  // namespace

Proxy::Proxy(int ports) {
  absl::MutexLock lock(&mu_);
  for (int i = 0; i < ports; ++i) {
    Port& port = ports_.emplace_back();
    port.fd = NewSocket();
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof(address);
    if (::bind(port.fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || ::listen(port.fd, 64) != 0 ||
        ::getsockname(port.fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      std::perror("a proxy's port");
      std::abort();
    }
    addresses_.push_back(absl::StrCat("127.0.0.1:", ntohs(address.sin_port)));
  }
  thread_ = std::thread([this] { Loop(); });
}

Proxy::~Proxy() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  thread_.join();
  absl::MutexLock lock(&mu_);
  for (Connection& connection : connections_) Close(connection, true);
  for (const Port& port : ports_) ::close(port.fd);
}

std::string Proxy::address(int port) const { return addresses_[static_cast<size_t>(port)]; }

void Proxy::SetUpstream(const std::string& address) {
  absl::MutexLock lock(&mu_);
  int port = 0;
  if (!absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) port = 0;
  upstream_ = static_cast<uint16_t>(port);
}

template <typename Change>
void Proxy::ForPorts(int port, Change change) {
  for (int i = 0; i < static_cast<int>(addresses_.size()); ++i) {
    if (port == -1 || port == i) change(i);
  }
}

void Proxy::Drop(int port) {
  absl::MutexLock lock(&mu_);
  for (Connection& connection : connections_) connection.broken |= port == -1 || connection.port == port;
}

void Proxy::Silence(int port, absl::Duration duration) {
  absl::MutexLock lock(&mu_);
  ForPorts(port, [&](int i) ABSL_NO_THREAD_SAFETY_ANALYSIS { ports_[i].silent_until = absl::Now() + duration; });
}

void Proxy::Delay(int port, absl::Duration delay, absl::Duration duration) {
  absl::MutexLock lock(&mu_);
  ForPorts(port, [&](int i) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    ports_[i].delay = delay;
    ports_[i].delayed_until = absl::Now() + duration;
  });
}

void Proxy::Loop() {
  std::vector<pollfd> polled;
  for (;;) {
    std::vector<Connection*> of;  // a connection each two entries, after the ports
    {
      absl::MutexLock lock(&mu_);
      if (stop_) return;
      const absl::Time now = absl::Now();
      polled.clear();
      for (const Port& port : ports_) polled.push_back({port.fd, POLLIN, 0});
      for (Connection& connection : connections_) {
        of.push_back(&connection);
        for (int side = 0; side < 2; ++side) {
          const Way& out = connection.way[1 - side];
          const bool silent = now < ports_[connection.port].silent_until;
          int16_t events = 0;
          if (!silent && !connection.way[side].ended && connection.way[side].queued < kMostQueued) events |= POLLIN;
          if (!silent && !out.pieces.empty() && out.pieces.front().due <= now) events |= POLLOUT;
          if (side == 1 && connection.connecting) events = POLLOUT;
          polled.push_back({events != 0 ? connection.fd[side] : -1, events, 0});
        }
      }
    }
    ::poll(polled.data(), polled.size(), kTickMs);
    absl::MutexLock lock(&mu_);
    const absl::Time now = absl::Now();
    for (size_t i = 0; i < of.size(); ++i) {
      const size_t at = ports_.size() + 2 * i;
      Connection& connection = *of[i];
      if (connection.connecting && polled[at + 1].revents != 0) {
        int error = 0;
        socklen_t size = sizeof(error);
        ::getsockopt(connection.fd[1], SOL_SOCKET, SO_ERROR, &error, &size);
        connection.connecting = false;
        connection.broken |= error != 0;
        continue;
      }
      const bool readable[2] = {(polled[at].revents & (POLLIN | POLLHUP | POLLERR)) != 0,
                                (polled[at + 1].revents & (POLLIN | POLLHUP | POLLERR)) != 0};
      if (!connection.connecting && !connection.broken && !Move(connection, now, readable)) connection.ended = true;
    }
    connections_.remove_if([&](Connection& connection) {
      if (connection.broken || connection.ended) Close(connection, connection.broken);
      return connection.broken || connection.ended;
    });
    for (size_t i = 0; i < ports_.size(); ++i) {
      if (polled[i].revents != 0) Accept(static_cast<int>(i));
    }
  }
}

void Proxy::Accept(int port) {
  for (;;) {
    const int client = ::accept4(ports_[port].fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (client < 0) return;
    const int server = upstream_ != 0 ? NewSocket() : -1;
    const sockaddr_in address = Loopback(upstream_);
    if (server < 0 || (::connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 &&
                       errno != EINPROGRESS)) {
      ::close(client);
      if (server >= 0) ::close(server);
      continue;
    }
    SendAtOnce(client);
    SendAtOnce(server);
    Connection& connection = connections_.emplace_back();
    connection.port = port;
    connection.fd[0] = client;
    connection.fd[1] = server;
  }
}

bool Proxy::Move(Connection& connection, absl::Time now, const bool* readable) {
  const Port& port = ports_[connection.port];
  if (now < port.silent_until) return true;
  const absl::Duration delay = now < port.delayed_until ? port.delay : absl::ZeroDuration();
  char buffer[16 << 10];
  for (int side = 0; side < 2; ++side) {
    Way& way = connection.way[side];
    while (readable[side] && !way.ended && way.queued < kMostQueued) {
      const ssize_t n = ::recv(connection.fd[side], buffer, sizeof(buffer), 0);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
      if (n <= 0) {
        way.ended = true;
        break;
      }
      // Never before what came earlier.
      const absl::Time due = way.pieces.empty() ? now + delay : std::max(now + delay, way.pieces.back().due);
      way.pieces.push_back({due, std::string(buffer, static_cast<size_t>(n))});
      way.queued += static_cast<size_t>(n);
    }
    while (!way.pieces.empty() && way.pieces.front().due <= now) {
      const std::string& bytes = way.pieces.front().bytes;
      const ssize_t n = ::send(connection.fd[1 - side], bytes.data() + way.written, bytes.size() - way.written,
                               MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
      if (n < 0) return false;
      way.written += static_cast<size_t>(n);
      if (way.written < bytes.size()) break;
      way.queued -= bytes.size();
      way.written = 0;
      way.pieces.pop_front();
    }
    // HTTP/2 has no half-closed connections: the end of either side, once it is told, is the end of both.
    if (way.ended && way.pieces.empty()) return false;
  }
  return true;
}

void Proxy::Close(Connection& connection, bool reset) {
  const linger at_once = {.l_onoff = reset ? 1 : 0, .l_linger = 0};
  for (const int fd : connection.fd) {
    ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    ::close(fd);
  }
}

}  // namespace smt::testing
