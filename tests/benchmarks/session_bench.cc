#include "tests/benchmarks/session_bench.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/session/session_manager.h"
#include "server/session/session_record.h"
#include "server/store/rocksdb_store.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/runner_util.h"

namespace smt::bench {
namespace {

constexpr int kPage = 1000;

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = std::filesystem::temp_directory_path() / "smt_bench_XXXXXX";
    path_ = OrDie(::mkdtemp(pattern.data()) != nullptr ? absl::StatusOr<std::string>(pattern)
                                                       : absl::UnavailableError("cannot make a temporary folder"));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::unique_ptr<SessionStore> OpenStore(const std::string& dir) {
  RocksDbStoreOptions options;
  options.dir = dir;
  return OrDie(OpenRocksDbStore(std::move(options)));
}

// As after one turn each, made in an order that is not the names'.
void Fill(SessionStore& store, int sessions) {
  std::vector<SessionWrite> group;
  for (int i = 0; i < sessions; ++i) {
    const auto scrambled = static_cast<uint32_t>(i) * 2654435761U;
    char id[32];
    std::snprintf(id, sizeof(id), "s-%08x", scrambled);
    SessionHeader header;
    header.revision = 3;
    header.position = header.durable_position = 48;
    header.model_fingerprint = std::string(64, 'f');
    header.create_time = header.update_time = absl::FromUnixSeconds(1'700'000'000 + i);
    header.labels = {{"user", std::to_string(i)}};
    AddCheckpoint(&header, {{.id = "turn-0-0", .automatic = true, .request_id = "request-1"}, {}});
    SessionWrite& write = group.emplace_back();
    write.kind = SessionWrite::Kind::kCreate;
    write.key = {id, static_cast<uint64_t>(i) + 1};
    write.header = EncodeHeader(header);
    write.position = 0;
    write.ids = std::vector<int32_t>(48, i);
    RequestRecord request;
    request.request_id = "request-1";
    request.params = std::string(100, 'p');
    request.state = RequestState::kFinished;
    write.requests.emplace_back(request.request_id, EncodeRequest(request));
    if (group.size() < kPage && i + 1 < sessions) continue;
    for (const absl::Status& status : store.Commit(group, false)) {
      if (!status.ok()) OrDie(absl::StatusOr<int>(status));
    }
    group.clear();
  }
}

std::unique_ptr<SessionManager> OpenManager(const std::string& dir, int64_t max_sessions) {
  SessionManager::Options options;
  options.model_fingerprint = std::string(64, 'f');
  options.sweep_interval = absl::InfiniteDuration();
  options.max_sessions = max_sessions;
  return OrDie(SessionManager::Open(std::move(options), OpenStore(dir)));
}

double Percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(p * static_cast<double>(values.size() - 1))];
}

}  // namespace

nlohmann::json ManySessions(int sessions, int rounds) {
  const TemporaryFolder folder;
  {
    const auto store = OpenStore(folder.path());
    Fill(*store, sessions);
  }
  std::vector<double> start, counted_start, pages;
  for (int round = 0; round < rounds; ++round) {
    double begin = Seconds();
    OpenManager(folder.path(), 0);
    start.push_back(Seconds() - begin);
    begin = Seconds();
    const auto manager = OpenManager(folder.path(), int64_t{2} * sessions);
    counted_start.push_back(Seconds() - begin);
    size_t seen = 0;
    std::string token;
    do {
      begin = Seconds();
      const SessionManager::Page page = OrDie(manager->List(kPage, token));
      pages.push_back(1e3 * (Seconds() - begin));
      seen += page.sessions.size();
      token = page.next_page_token;
    } while (!token.empty());
    if (seen != static_cast<size_t>(sessions)) {
      std::cerr << "smt_bench: " << seen << " of " << sessions << " sessions were listed\n";
      std::exit(1);
    }
  }
  return {{"sessions", sessions},
          {"start_s", Median(start)},
          {"start_counting_s", Median(counted_start)},
          {"page_of_1000_p50_ms", Percentile(pages, 0.5)},
          {"page_of_1000_p99_ms", Percentile(pages, 0.99)}};
}

}  // namespace smt::bench
