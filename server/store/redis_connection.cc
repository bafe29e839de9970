#include "server/store/redis_connection.h"

#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"

namespace smt::store_internal {
namespace {

int MillisecondsUntil(SteadyTime deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

absl::Status NotReached(const RedisEndpoint& endpoint, std::string_view why) {
  return absl::UnavailableError(StrCat("Redis at ", ToString(endpoint), " is not reached: ", why));
}

// A connected socket, or -errno.
int ConnectSocket(int family, const sockaddr* address, socklen_t size, SteadyTime deadline) {
  const int fd = ::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  int error = ::connect(fd, address, size) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    pollfd wait{fd, POLLOUT, 0};
    int ready = 0;
    do {
      ready = ::poll(&wait, 1, MillisecondsUntil(deadline));
    } while (ready < 0 && errno == EINTR);
    socklen_t length = sizeof(error);
    if (ready == 0) {
      error = ETIMEDOUT;
    } else if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) {
      error = errno;
    }
  }
  if (error == 0) return fd;
  ::close(fd);
  return -error;
}

absl::StatusOr<int> ConnectTcp(const RedisEndpoint& endpoint, SteadyTime deadline) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = ::getaddrinfo(endpoint.host.c_str(), std::to_string(endpoint.port).c_str(), &hints, &found);
  if (failed != 0) return NotReached(endpoint, ::gai_strerror(failed));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, &::freeaddrinfo);
  int result = -EHOSTUNREACH;
  for (const addrinfo* a = found; a != nullptr && result < 0; a = a->ai_next) {
    result = ConnectSocket(a->ai_family, a->ai_addr, a->ai_addrlen, deadline);
  }
  if (result < 0) return NotReached(endpoint, std::strerror(-result));
  const int on = 1;
  ::setsockopt(result, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  ::setsockopt(result, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  return result;
}

absl::StatusOr<int> ConnectUnix(const RedisEndpoint& endpoint, SteadyTime deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (endpoint.socket_path.size() >= sizeof(address.sun_path)) return NotReached(endpoint, "the path is too long");
  std::memcpy(address.sun_path, endpoint.socket_path.data(), endpoint.socket_path.size());
  const int result = ConnectSocket(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof(address), deadline);
  if (result < 0) return NotReached(endpoint, std::strerror(-result));
  return result;
}

std::string TlsError() {
  std::array<char, 256> text{};
  const unsigned long code = ERR_get_error();  // NOLINT(google-runtime-int): OpenSSL's type
  ERR_clear_error();
  if (code == 0) return "the connection was closed";
  ERR_error_string_n(code, text.data(), text.size());
  return text.data();
}

RedisReply Convert(const redisReply& r) {
  RedisReply out;
  switch (r.type) {
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
      out.kind = RedisReply::Kind::kText;
      out.text.assign(r.str, r.len);
      break;
    case REDIS_REPLY_ERROR:
      out.kind = RedisReply::Kind::kError;
      out.text.assign(r.str, r.len);
      break;
    case REDIS_REPLY_INTEGER:
      out.kind = RedisReply::Kind::kNumber;
      out.number = r.integer;
      break;
    case REDIS_REPLY_ARRAY:
      out.kind = RedisReply::Kind::kArray;
      out.elements.reserve(r.elements);
      for (size_t i = 0; i < r.elements; ++i) out.elements.push_back(Convert(*r.element[i]));
      break;
    default:
      break;
  }
  return out;
}

void AppendCommand(std::string* out, const RedisCommand& command) {
  size_t bytes = 16;
  for (const std::string& word : command) bytes += word.size() + 24;
  out->reserve(out->size() + bytes);
  out->append(StrCat("*", command.size(), "\r\n"));
  for (const std::string& word : command) {
    out->append(StrCat("$", word.size(), "\r\n"));
    out->append(word);
    out->append("\r\n");
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<SSL_CTX>> NewRedisTlsContext(const RedisTlsFiles& files) {
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
  const auto bad = [](const std::string& file) {
    return absl::InvalidArgumentError(StrCat("'", file, "' cannot be used for TLS to Redis: ", TlsError()));
  };
  ERR_clear_error();
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  if (files.ca.empty()) {
    SSL_CTX_set_default_verify_paths(context.get());
  } else if (SSL_CTX_load_verify_locations(context.get(), files.ca.c_str(), nullptr) != 1) {
    return bad(files.ca);
  }
  if (files.cert.empty() != files.key.empty()) {
    return absl::InvalidArgumentError("TLS to Redis needs both of the client's certificate and its key, or neither");
  }
  if (!files.cert.empty()) {
    if (SSL_CTX_use_certificate_chain_file(context.get(), files.cert.c_str()) != 1) return bad(files.cert);
    if (SSL_CTX_use_PrivateKey_file(context.get(), files.key.c_str(), SSL_FILETYPE_PEM) != 1) return bad(files.key);
  }
  return context;
}

RedisConnection::RedisConnection(const RedisEndpoint& endpoint, int fd)
    : name_(ToString(endpoint)), fd_(fd), reader_(redisReaderCreate()) {}

RedisConnection::~RedisConnection() { ::close(fd_); }

absl::StatusOr<std::unique_ptr<RedisConnection>> RedisConnection::Connect(const RedisEndpoint& endpoint, SSL_CTX* tls,
                                                                          SteadyTime deadline) {
  ASSIGN_OR_RETURN(const int fd,
                   endpoint.socket_path.empty() ? ConnectTcp(endpoint, deadline) : ConnectUnix(endpoint, deadline));
  auto out = std::unique_ptr<RedisConnection>(new RedisConnection(endpoint, fd));
  if (tls == nullptr) return out;
  const absl::Status status = out->StartTls(endpoint, tls, deadline);
  if (absl::IsDeadlineExceeded(status)) return NotReached(endpoint, std::string(status.message()));
  RETURN_IF_ERROR(status);
  return out;
}

absl::Status RedisConnection::StartTls(const RedisEndpoint& endpoint, SSL_CTX* tls, SteadyTime deadline) {
  ssl_.reset(SSL_new(tls));
  SSL_set_bio(ssl_.get(), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  if (!endpoint.host.empty()) {
    // A name is verified as a name, an address as an address; only names are sent in the clear.
    if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_.get()), endpoint.host.c_str()) != 1) {
      SSL_set1_host(ssl_.get(), endpoint.host.c_str());
      SSL_set_tlsext_host_name(ssl_.get(), endpoint.host.c_str());
    }
  }
  SSL_set_connect_state(ssl_.get());
  for (;;) {
    ERR_clear_error();
    const int done = SSL_do_handshake(ssl_.get());
    const int why = SSL_get_error(ssl_.get(), done);
    const long verified = SSL_get_verify_result(ssl_.get());  // NOLINT(google-runtime-int): OpenSSL's type
    DrainTls();
    if (done == 1) return absl::OkStatus();
    if (why != SSL_ERROR_WANT_READ) {
      return Broken(verified != X509_V_OK
                        ? StrCat("its certificate is not trusted: ", X509_verify_cert_error_string(verified))
                        : StrCat("TLS failed: ", TlsError()));
    }
    RETURN_IF_ERROR(Exchange(deadline));
  }
}

absl::Status RedisConnection::Run(std::span<const RedisCommand> commands, SteadyTime deadline,
                                  std::vector<RedisReply>* replies) {
  std::string plain;
  for (const RedisCommand& command : commands) AppendCommand(ssl_ ? &plain : &out_, command);
  if (ssl_ && !plain.empty()) {
    for (size_t at = 0; at < plain.size();) {
      size_t written = 0;
      ERR_clear_error();
      if (SSL_write_ex(ssl_.get(), plain.data() + at, plain.size() - at, &written) != 1) return Broken(TlsError());
      at += written;
    }
    DrainTls();
  }
  const size_t wanted = replies->size() + commands.size();
  while (replies->size() < wanted) {
    RETURN_IF_ERROR(Exchange(deadline));
    RETURN_IF_ERROR(Parse(replies));
  }
  return absl::OkStatus();
}

absl::Status RedisConnection::Exchange(SteadyTime deadline) {
  pollfd wait{fd_, POLLIN, 0};
  if (out_at_ < out_.size()) wait.events |= POLLOUT;
  const int ready = ::poll(&wait, 1, MillisecondsUntil(deadline));
  if (ready < 0 && errno != EINTR) return Broken(std::strerror(errno));
  if (ready <= 0) {
    if (std::chrono::steady_clock::now() < deadline) return absl::OkStatus();
    return absl::DeadlineExceededError(StrCat("Redis at ", name_, " did not answer in time"));
  }
  if (wait.revents & POLLOUT) RETURN_IF_ERROR(SendSome());
  if (wait.revents & (POLLIN | POLLHUP | POLLERR)) RETURN_IF_ERROR(ReceiveSome());
  return absl::OkStatus();
}

absl::Status RedisConnection::SendSome() {
  while (out_at_ < out_.size()) {
    const ssize_t n = ::send(fd_, out_.data() + out_at_, out_.size() - out_at_, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::OkStatus();
      return Broken(std::strerror(errno));
    }
    out_at_ += static_cast<size_t>(n);
  }
  out_.clear();
  out_at_ = 0;
  if (out_.capacity() > (1 << 20)) out_.shrink_to_fit();
  return absl::OkStatus();
}

absl::Status RedisConnection::ReceiveSome() {
  std::array<char, 64 << 10> buffer;
  const ssize_t n = ::recv(fd_, buffer.data(), buffer.size(), 0);
  if (n == 0) return Broken("it closed the connection");
  if (n < 0) {
    if (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK) return absl::OkStatus();
    return Broken(std::strerror(errno));
  }
  if (!ssl_) {
    if (redisReaderFeed(reader_.get(), buffer.data(), static_cast<size_t>(n)) != REDIS_OK) {
      return Broken(reader_->errstr);
    }
    return absl::OkStatus();
  }
  BIO_write(SSL_get_rbio(ssl_.get()), buffer.data(), static_cast<int>(n));
  if (!SSL_is_init_finished(ssl_.get())) return absl::OkStatus();
  for (;;) {
    size_t read = 0;
    ERR_clear_error();
    if (SSL_read_ex(ssl_.get(), buffer.data(), buffer.size(), &read) != 1) {
      if (SSL_get_error(ssl_.get(), 0) != SSL_ERROR_WANT_READ) return Broken(TlsError());
      DrainTls();  // what TLS itself has to say
      return absl::OkStatus();
    }
    if (redisReaderFeed(reader_.get(), buffer.data(), read) != REDIS_OK) return Broken(reader_->errstr);
  }
}

absl::Status RedisConnection::Parse(std::vector<RedisReply>* replies) {
  for (;;) {
    void* reply = nullptr;
    if (redisReaderGetReply(reader_.get(), &reply) != REDIS_OK) return Broken(reader_->errstr);
    if (reply == nullptr) return absl::OkStatus();
    replies->push_back(Convert(*static_cast<redisReply*>(reply)));
    freeReplyObject(reply);
  }
}

void RedisConnection::DrainTls() {
  BIO* out = SSL_get_wbio(ssl_.get());
  const size_t pending = BIO_ctrl_pending(out);
  if (pending == 0) return;
  const size_t at = out_.size();
  out_.resize(at + pending);
  BIO_read(out, out_.data() + at, static_cast<int>(pending));
}

bool RedisConnection::Stale() const {
  char byte = 0;
  const ssize_t n = ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

absl::Status RedisConnection::Broken(std::string_view what) const {
  return absl::UnavailableError(StrCat("the connection to Redis at ", name_, " broke: ", what));
}

}  // namespace smt::store_internal
