#include "tests/server/store/redis_testing.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace smt {
namespace {

using store_internal::RedisCommand;
using store_internal::RedisConnection;
using store_internal::RedisReply;

store_internal::SteadyTime Soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(20); }

}  // namespace

std::string FindProgram(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::stringstream folders((path == nullptr ? std::string() : std::string(path)) + ":/usr/sbin:/usr/bin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    folder.append("/").append(name);
    if (::access(folder.c_str(), X_OK) == 0) return folder;
  }
  return "";
}

bool HasRedisServer() { return !FindProgram("redis-server").empty(); }

std::unique_ptr<RedisServer> RedisServer::Start(std::vector<std::string> arguments) {
  if (!HasRedisServer()) return nullptr;
  auto out = std::unique_ptr<RedisServer>(new RedisServer);
  out->arguments_ = std::move(arguments);
  out->Restart();
  return out;
}

std::unique_ptr<RedisServer> RedisServer::StartSentinel(int port, int master_port) {
  if (!HasRedisServer()) return nullptr;
  auto out = std::unique_ptr<RedisServer>(new RedisServer);
  out->sentinel_ = true;
  std::ofstream(out->dir() + "/sentinel.conf")
      << "port " << port << "\nunixsocket " << out->socket() << "\nlogfile " << out->dir()
      << "/log\nsentinel monitor sessions 127.0.0.1 " << master_port << " 1\n";
  out->Restart();
  return out;
}

RedisServer::~RedisServer() { Kill(); }

int FreePort() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

RedisStoreOptions RedisServer::Options() const {
  RedisStoreOptions options;
  options.address = socket();
  options.command_timeout = absl::Seconds(20);
  return options;
}

void RedisServer::Restart() {
  std::vector<std::string> words = {FindProgram("redis-server"),
                                    "--port",
                                    "0",
                                    "--unixsocket",
                                    socket(),
                                    "--dir",
                                    dir(),
                                    "--save",
                                    "",
                                    "--logfile",
                                    dir() + "/log",
                                    "--enable-debug-command",
                                    "yes"};
  if (sentinel_) words = {words[0], dir() + "/sentinel.conf", "--sentinel"};
  words.insert(words.end(), arguments_.begin(), arguments_.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::error_code ec;
  std::filesystem::remove(socket(), ec);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  for (int i = 0; i < 1000 && !Answers(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_TRUE(Answers()) << "redis-server does not start; see " << dir() << "/log";
}

bool RedisServer::Answers() const {
  auto connection = RedisConnection::Connect({.socket_path = socket(), .host = "", .port = 0}, nullptr, Soon());
  if (!connection.ok()) return false;
  std::vector<RedisReply> replies;
  const RedisCommand ping = {"PING"};
  return (*connection)->Run({&ping, 1}, Soon(), &replies).ok() && !replies[0].text.starts_with("LOADING");
}

void RedisServer::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void RedisServer::Empty() {
  for (const auto& entry : std::filesystem::directory_iterator(dir())) std::filesystem::remove_all(entry.path());
}

RedisReply RedisServer::Do(RedisCommand command) const {
  auto connection = RedisConnection::Connect({.socket_path = socket(), .host = "", .port = 0}, nullptr, Soon());
  std::vector<RedisReply> replies;
  if (connection.ok()) {
    const absl::Status status = (*connection)->Run({&command, 1}, Soon(), &replies);
    EXPECT_TRUE(status.ok()) << status.ToString();
  } else {
    ADD_FAILURE() << connection.status().ToString();
  }
  return replies.empty() ? RedisReply() : replies[0];
}

std::vector<std::string> RedisServer::Keys(const std::string& pattern) const {
  std::vector<std::string> out;
  for (const RedisReply& key : Do({"KEYS", pattern}).elements) out.push_back(key.text);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace smt
