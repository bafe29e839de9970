#include "tests/benchmarks/turn_client.h"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/random_ids.h"

namespace smt::bench {
namespace {

constexpr std::chrono::minutes kLongestTurn{2};

// What all streams of an interval share.
class Interval {
 public:
  explicit Interval(const TurnLoad& load) : load(load), tally(load.streams), running(load.streams) {}

  // True: the stream is to end.
  bool TurnEnded(const grpc::Status& status) {
    if (!status.ok()) {
      absl::MutexLock lock(&mu_);
      if (failure_.ok()) failure_ = absl::UnavailableError(absl::StrCat("a turn: ", status.error_message()));
      stop = true;
    }
    return stop;
  }
  absl::Status failure() const {
    absl::MutexLock lock(&mu_);
    return failure_;
  }

  const TurnLoad& load;
  WindowTally tally;
  absl::BlockingCounter running;
  std::atomic<bool> stop{false};

 private:
  mutable absl::Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
};

// One call; a stream is a chain of them, each made when the one before has ended.
class TurnCall final : public grpc::ClientReadReactor<v1::StreamGenerateResponse> {
 public:
  static void Begin(v1::GenerationService::Stub& stub, Interval& interval, int stream, int turn) {
    (new TurnCall(stub, interval, stream, turn))->Start();  // deletes itself in OnDone
  }

 private:
  TurnCall(v1::GenerationService::Stub& stub, Interval& interval, int stream, int turn)
      : stub_(stub), interval_(interval), stream_(stream), turn_(turn) {}

  void Start() {
    const TurnLoad& load = interval_.load;
    const auto seed = static_cast<uint32_t>(stream_ * 7919 + turn_);
    v1::GenerationSpec& spec = *request_.mutable_spec();
    for (const int32_t id : Ids(load.vocabulary, 8 + (stream_ * 5 + turn_ * 3) % 16, seed)) {
      spec.mutable_token_ids()->add_ids(id);
    }
    spec.mutable_sampling()->set_temperature(load.temperature);
    spec.mutable_sampling()->set_top_p(load.top_p);
    spec.mutable_sampling()->set_seed(seed);
    const int64_t tokens = turn_ > 0 ? load.tokens : 1 + int64_t{load.tokens - 1} * stream_ / load.streams;
    spec.mutable_stopping()->set_max_tokens(tokens);
    spec.mutable_stopping()->set_ignore_eos(true);
    spec.set_session(absl::StrCat(load.session_prefix, stream_));
    spec.set_create_session(true);
    spec.set_request_id(absl::StrCat(load.request_prefix, turn_));
    spec.set_durability(static_cast<v1::Durability>(load.durability));
    context_.set_deadline(std::chrono::system_clock::now() + kLongestTurn);
    interval_.tally.TurnBegins(stream_, Seconds());
    stub_.async()->StreamGenerate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.event().has_chunk()) {
      interval_.tally.Arrives(stream_, response_.event().chunk().token_ids_size(), Seconds());
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    Interval& interval = interval_;
    const bool ends = interval.TurnEnded(status);
    if (!ends) Begin(stub_, interval, stream_, turn_ + 1);
    // Before it is told: a call's context holds the channel, which must not go last on a thread of its own.
    delete this;
    if (ends) interval.running.DecrementCount();
  }

  v1::GenerationService::Stub& stub_;
  Interval& interval_;
  const int stream_, turn_;
  v1::StreamGenerateRequest request_;
  grpc::ClientContext context_;
  v1::StreamGenerateResponse response_;
};

double OwnCpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// 0 where there is no such process.
double CpuSecondsOf(int pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  const std::string stat(std::istreambuf_iterator<char>(file), {});
  const size_t name_end = stat.rfind(')');  // a name may have anything in it
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(stat.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

}  // namespace

absl::StatusOr<TurnInterval> RunTurns(const std::vector<std::unique_ptr<v1::GenerationService::Stub>>& stubs,
                                      const TurnLoad& load, int server_pid) {
  Interval interval(load);
  for (int i = 0; i < load.streams; ++i) {
    TurnCall::Begin(*stubs[static_cast<size_t>(i) % stubs.size()], interval, i, 0);
  }
  const auto sleep_until = [&](double time) {
    while (!interval.stop && Seconds() < time) {
      absl::SleepFor(std::min(absl::Milliseconds(20), absl::Seconds(time - Seconds())));
    }
  };
  sleep_until(Seconds() + load.warm_up_s);
  while (!interval.stop && !interval.tally.all_began()) absl::SleepFor(absl::Milliseconds(20));
  TurnInterval result;
  const double begin = Seconds();
  interval.tally.Open(begin, begin + load.seconds);
  const double client = OwnCpuSeconds(), server = CpuSecondsOf(server_pid);
  sleep_until(begin + load.seconds);
  const double measured = Seconds() - begin;
  result.client_cores = (OwnCpuSeconds() - client) / measured;
  result.server_cores = (CpuSecondsOf(server_pid) - server) / measured;
  interval.stop = true;
  interval.running.Wait();
  if (absl::Status failure = interval.failure(); !failure.ok()) return failure;
  result.figures = interval.tally.Sum();
  return result;
}

}  // namespace smt::bench
