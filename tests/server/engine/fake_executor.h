// An Executor whose "model" is arithmetic: a state is a hash of all ids absorbed, and a draw is a function of that
// hash, the bound seed and the bound prior ids. So what a request must draw is known beforehand, and any id that is
// lost, doubled or swapped changes everything after it.
//
// Work is done when it is polled, in the order it was issued, so buffers that die too early are found by ASan. Breaking
// the Executor contract (two items a slot, too many steps in flight, another thread) fails the test.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "server/engine/executor.h"
#include "server/engine/mutex.h"

namespace smt {

struct FakeState {
  int64_t position = 0;
  uint64_t hash = 0x9e3779b97f4a7c15;

  void Absorb(int32_t id);
  int32_t Draw(const SamplingParams& params, uint64_t prior_hash, int32_t vocab) const;
  float Score(int32_t target) const;
  static FakeState Of(std::span<const int32_t> ids);
  static uint64_t HashOf(std::span<const int32_t> ids);
};

// What a test does to the executor while the engine owns it, and sees of it. Thread-safe.
class FakeControl {
 public:
  struct Item {
    int32_t slot;
    bool append_last;
    int64_t ids;
    Want want;
  };
  using Batch = std::vector<Item>;

  // Steps wait in Poll until they are let through. Hold before the first Submit.
  void Hold();
  void LetThrough(int steps);
  void LetAllThrough();

  // The next Submit, or the next Poll of a step, fails: with INTERNAL, or by throwing.
  void FailNextSubmit(bool by_throwing = false);
  void FailNextPoll(bool by_throwing = false);
  // The next Load's ticket fails with this; INVALID_ARGUMENT is the state's fault, anything else the device's.
  void FailNextLoad(absl::Status status);
  // Draws after this many give INTERNAL for their item only.
  void FailDraw(int64_t after_draws);

  // A call that does not come back until EndHang. kAwait: a Poll that waits for a Load, Save or Copy.
  enum class Call { kNone, kReset, kLoad, kSave, kSubmit, kPoll, kAwait };
  void HangIn(Call call);
  void EndHang() { HangIn(Call::kNone); }
  bool AwaitHang();  // false after 20 s

  std::vector<Batch> batches() const;  // of every Submit so far
  // Waits until so many steps were submitted; false after 20 s.
  bool AwaitBatches(size_t count);
  // Waits until the engine waits for a step that is held; false after 20 s.
  bool AwaitHeld();
  int64_t binds() const;

 private:
  friend class FakeExecutor;
  void Pass(Call call);
  mutable PlainMutex mu_;
  PlainCondition changed_;
  bool holding_ = false;
  bool held_ = false;  // a Poll waits
  int permits_ = 0;
  Call hang_in_ = Call::kNone;
  bool hangs_ = false;
  bool fail_submit_ = false, fail_poll_ = false, by_throwing_ = false;
  absl::Status fail_load_;
  int64_t fail_draw_after_ = -1, draws_ = 0, binds_ = 0;
  std::vector<Batch> batches_;
};

class FakeExecutor : public Executor {
 public:
  struct Options {
    int32_t slots = 4;
    int32_t max_in_flight = 1;
    int32_t vocab = 97;
    int32_t stride = 4;
    int32_t input_tokens = 10;
    double defer = 0;           // probability that an item is put off, or its draw alone
    double late_transfers = 0;  // that a transfer polled without waiting is not done yet
    absl::Duration step_time = absl::ZeroDuration();
    uint32_t seed = 1;
  };
  static constexpr int64_t kStateBytes = 16;

  FakeExecutor(Options options, std::shared_ptr<FakeControl> control);
  ~FakeExecutor() override;

  const ExecutorInfo& info() const override { return info_; }
  int64_t position(int32_t slot) const override;
  void Reset(int32_t slot) override;
  Ticket Load(int32_t slot, std::span<const std::byte> state) override;
  Ticket Save(int32_t slot, std::span<std::byte> state) override;
  Ticket Copy(int32_t from, int32_t to) override;
  void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t> prior,
                    std::span<const int32_t> generated) override;
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override;
  absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result) override;

 private:
  struct SlotState {
    FakeState state;
    int32_t last_drawn = -1;
    bool draw_failed = false;
    bool owes_draw = false;  // the last drawn id is appended, the next draw deferred
    std::shared_ptr<const SamplingParams> params;
    uint64_t prior_hash = 0;
  };
  struct Operation {
    Ticket ticket;
    bool is_step;
    std::function<void(StepResult*)> run;
  };
  Ticket Issue(bool is_step, std::function<void(StepResult*)> run);
  void CheckThread() const;
  ItemResult RunItem(const PlanItem& item);
  absl::Status Die(const char* why, bool by_throwing);

  const Options options_;
  const std::shared_ptr<FakeControl> control_;
  ExecutorInfo info_;
  std::vector<SlotState> slots_;
  std::vector<int64_t> issued_;
  std::deque<Operation> pending_;
  std::map<Ticket, StepResult> done_;
  std::map<Ticket, absl::Status> failed_loads_;
  Ticket last_ticket_ = 0;
  int32_t steps_in_flight_ = 0;
  bool dead_ = false;
  std::mt19937 random_;
  mutable std::thread::id thread_;
};

}  // namespace smt
