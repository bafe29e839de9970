// A TCP proxy whose connections can be cut, silenced and delayed. One thread; calls are thread-safe.
//
// It has several ports, so that clients which would share one connection (gRPC does that for equal addresses) do not.
// While nobody listens upstream, connections are accepted and closed at once.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace smt::testing {

class Proxy {
 public:
  explicit Proxy(int ports);
  ~Proxy();

  // "127.0.0.1:PORT" of the port with this number.
  std::string address(int port) const;
  // Where new connections go; empty: nowhere. Those that exist stay.
  void SetUpstream(const std::string& address);

  // Each concerns one port, or all with -1.
  void Drop(int port);                                                  // connections, with RST
  void Silence(int port, absl::Duration duration);                      // nothing passes meanwhile
  void Delay(int port, absl::Duration delay, absl::Duration duration);  // bytes pass so much later, meanwhile

 private:
  struct Way {  // of the bytes of one direction
    struct Piece {
      absl::Time due;
      std::string bytes;
    };
    std::deque<Piece> pieces;
    size_t queued = 0, written = 0;  // bytes in all; of the first piece
    bool ended = false;              // nothing more will be read
  };
  struct Connection {
    int port = 0;
    int fd[2] = {-1, -1};  // client, server
    Way way[2];            // from client, from server
    bool connecting = true;
    bool broken = false, ended = false;
  };
  struct Port {
    int fd = -1;
    std::string address;
    absl::Time silent_until, delayed_until;
    absl::Duration delay;
  };

  void Loop();
  void Accept(int port) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Moves what can be moved now; false once both ways are done.
  bool Move(Connection& connection, absl::Time now, const bool* readable) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Close(Connection& connection, bool reset);
  template <typename Change>
  void ForPorts(int port, Change change);

  absl::Mutex mu_;
  std::vector<Port> ports_ ABSL_GUARDED_BY(mu_);
  std::list<Connection> connections_ ABSL_GUARDED_BY(mu_);
  uint16_t upstream_ ABSL_GUARDED_BY(mu_) = 0;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::string> addresses_;  // const after construction
  std::thread thread_;
};

}  // namespace smt::testing
