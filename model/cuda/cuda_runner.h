// CudaSlotRunner's class (cuda_slot_runner.h), for its own translation units.
//
// Two streams: one for the window and the draws, one for writes, which take as long as a step and share little with it.
// Writes begin after what the window's stream was asked before; the window's stream waits for a write where it first
// needs what that wrote.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/async_runner.h"
#include "model/cuda/cuda_slot_runner.h"
#include "model/cuda/cuda_weights.h"
#include "model/cuda/device_memory.h"
#include "model/cuda/logits.h"
#include "model/cuda/pinned_uploads.h"
#include "model/cuda/sequence_pass.h"
#include "model/cuda/streams.h"
#include "model/cuda/transformer_pass.h"
#include "model/cuda/write_pass.h"
#include "model/sampling/edit_plan.h"

namespace smt::cuda {

class CudaSlotRunner final : public AsyncRunner {
 public:
  CudaSlotRunner(const StrideHybridConfig& config, const CudaSlotRunnerOptions& options, const SlotCapacity& capacity,
                 std::unique_ptr<CudaWeights> weights);
  ~CudaSlotRunner() override;

  const StrideHybridConfig& config() const override { return config_; }
  const StateLayout& layout() const override { return layout_; }
  int32_t slots() const override { return static_cast<int32_t>(slots_.size()); }
  bool deterministic() const override { return true; }
  std::string numerics_id() const override { return numerics_id_; }
  int64_t position(int32_t slot) const override { return At(slot).position; }
  void Reset(int32_t slot) override;
  void Load(int32_t slot, std::span<const std::byte> state) override;
  void Save(int32_t slot, std::span<std::byte> state) override;
  void Copy(int32_t from, int32_t to) override;
  void Ingest(std::span<const Chunk> chunks) override;
  void Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) override;
  void Logits(std::span<const int32_t> slots, float* logits) override;
  void SetWriteObserver(std::function<void(const WriteEvent&)> observer) override { observer_ = std::move(observer); }
  int64_t slot_bytes() const override;
  static size_t RingSize(const StrideHybridConfig& config);
  static int64_t PlanBytes(const StrideHybridConfig& config);  // of a slot, besides its state, cache and output
  SlotCapacity capacity() const override { return capacity_; }
  AsyncRunner* async() override { return this; }

  int64_t Queue(std::span<const Item> items, std::span<Part> parts) override;
  int32_t max_queued() const override { return static_cast<int32_t>(kQueued); }
  bool Take(int64_t step, bool wait, Results* results) override;
  int64_t QueueSave(int32_t slot, std::span<std::byte> state) override;
  bool TakeTransfer(int64_t transfer, bool wait) override;

 private:
  static constexpr int64_t kQueued = 2;
  // How a batch of writes runs. blocks: of WritePass::Run. spare: multiprocessors that the window leaves free
  // meanwhile.
  struct WriteMode {
    int blocks = 0, spare = 0;
  };
  // Beside the window, of a step of so many sessions (measured on an H200): a few writes are one kernel for all layers
  // on some of the multiprocessors; more of them are kernels that come and go between the window's. Under `hop`, where
  // the next step waits for them, all steps of so many sessions do the same: a kernel that wants multiprocessors for
  // itself waits long for them after the others.
  WriteMode WritesBeside(size_t count, size_t sessions) const {
    constexpr size_t kFew = 8;
    if (!KeepsTokens() && count <= kMaxWritePassWrites) return {.blocks = 32, .spare = 32};
    if (count <= kFew && sessions <= kFew * static_cast<size_t>(config_.stride)) return {.blocks = 48, .spare = 48};
    return {.blocks = WritePass::kApart, .spare = 4};
  }

  struct Slot {
    int64_t position = 0;
    std::vector<int32_t> tokens;  // the last min(position, m); -1 where the host does not know one yet
    int32_t unknown = 0;          // of them
    int64_t epoch = 0;            // counts Reset, Load and Copy to here
    int64_t cached = -1;          // the cache holds every window column up to this token; -1: not
    bool memory_cached = false;   // it holds the memory columns, which change at a write alone
    int64_t output_at = -1;       // the position whose output is kept
    bool ring_valid = true;       // its ring on the device has `tokens`
    bool owes_draw = false;       // a step has appended an id and left the draw to a later one
    bool put_off = false;         // by the latest step
    int64_t written = 0;          // the latest batch of writes that it was in
    void Forget() {
      cached = output_at = -1;
      memory_cached = false;
    }
    void BeginAnew() {
      Forget();
      ++epoch;
      unknown = 0;
      owes_draw = put_off = false;
    }
  };
  // What a queued step draws.
  struct Drawn {
    size_t item;
    int32_t slot;
    int64_t epoch, position;  // that the id takes
  };
  struct QueuedStep {
    int64_t number = 0;
    size_t items = 0;
    std::vector<Drawn> drawn;
    std::vector<LogprobAsk> asks;  // their rows: of `drawn`
    Event done;
    PinnedMemory ids, logprobs;
    bool resolved = false;
    Results results;
  };
  struct Transfer {
    int64_t number = 0;  // 0: free
    Event copied, done;
    DeviceMemory device;
    PinnedMemory host;
    int64_t position = 0;
    std::vector<int32_t> tokens;
    std::span<std::byte> to;
  };
  // The device's times of one step in kTimedEvery, which is the only one to be timed: no multiple of the stride, whose
  // steps would all be alike, and so many that what the events cost does not show.
  static constexpr int64_t kTimedEvery = 101;
  struct Timing {
    int64_t step = 0;  // the one being timed
    bool window_begun = false, writes_ended = false;
    Event window{Event::Kind::kTime}, draw{Event::Kind::kTime}, end{Event::Kind::kTime};
    Event writes{Event::Kind::kTime}, end_of_writes{Event::Kind::kTime};
  };
  enum class Ids { kKnown, kOfRing };  // where the device finds token ids

  // cuda_slot_runner.cc
  const Slot& At(int32_t slot) const;
  Slot& At(int32_t slot) { return const_cast<Slot&>(std::as_const(*this).At(slot)); }
  void Begin() const { CheckCuda(cudaSetDevice(index_), "choosing the device"); }  // per thread
  void Wait() const { CheckCuda(cudaStreamSynchronize(stream_.get()), "running the model"); }
  std::byte* StateOf(int32_t slot) const { return memory_.base + slot * memory_.stride; }
  void CheckIds(std::span<const int32_t> ids) const;
  void CheckBytes(size_t bytes) const;
  void Know(std::span<const int32_t> slots);  // waits for ids of these that the host does not know

  // cuda_runner_writes.cc
  void AppendToTokens(Slot& slot, std::span<const int32_t> ids);
  void BeginWrite(int32_t slot, Ids ids);
  void FinishWrites(Ids ids, const WriteMode& mode);  // queues the writes begun
  void EndBatch(const WriteMode& mode);
  bool IngestSequences(std::span<const Chunk> chunks);
  void WritesAfterWindow();  // what the window's stream was asked so far comes before the next writes
  void AwaitWrites(int64_t batch);
  bool WritesDone(int64_t batch) const;
  int SpareForWrites() const;  // multiprocessors, while writes may run beside the window's latest pass
  void Observe();

  // cuda_runner_window.cc
  int64_t TokensInWindow(int64_t position) const;
  void Refresh(std::span<const int32_t> slots);
  // Under `slide` the token columns move with every token: in the cache they do not outlive the step.
  bool KeepsTokens() const { return config_.window_policy == WindowPolicy::kHop; }
  void AddRows(int32_t slot, Ids ids);
  void RunRows();
  void Absorb(std::span<const int32_t> slots, std::span<const int32_t> ids);  // Step without its logits
  void Head(std::span<const int32_t> slots, float* logits);

  // cuda_runner_steps.cc
  void CheckItems(std::span<const Item> items) const;
  void Divide(std::span<const Item> items, std::span<Part> parts);
  void AppendItem(const Item& item);
  void DrawItems(std::span<const Item> items, QueuedStep& step);
  void DrawRows(std::span<const Item> items, QueuedStep& step, size_t first, size_t end);
  bool Timed() const { return timing_.step == last_step_ + 1; }  // in Queue
  void TakeTimes(QueuedStep& step);
  void Resolve(QueuedStep& step);
  void Settle();  // resolves all steps

  // cuda_runner_transfers.cc
  Transfer& FreeTransfer();
  void FinishTransfer(Transfer& transfer);

  const StrideHybridConfig config_;
  const StateLayout layout_;
  const SlotCapacity capacity_;
  const int index_;
  std::string numerics_id_;
  const Stream stream_, write_stream_, copy_stream_;
  PinnedUploads uploads_, write_uploads_;  // of the first two
  const std::unique_ptr<CudaWeights> weights_;
  TransformerPass transformer_;
  WritePass writer_;
  std::unique_ptr<SequencePass> sequences_;  // where writes do not pool over memory
  const size_t stride_;
  const DeviceMemory state_, asked_, drawn_, ring_ids_, last_ids_;
  SlotMemory memory_;
  IdRings rings_;
  std::vector<Slot> slots_;
  std::function<void(const WriteEvent&)> observer_;

  // Batches of writes are numbered from 1.
  static constexpr int64_t kWriteEvents = 64;
  int64_t write_batch_ = 0, awaited_batch_ = 0;
  std::array<Event, kWriteEvents> batch_done_;
  Event window_asked_;
  bool window_busy_ = false;  // asked for something since WritesAfterWindow
  int64_t wide_batch_ = 0;    // the latest that takes all multiprocessors
  int spare_ = 0;             // the most of the others that may still run

  int64_t last_step_ = 0, taken_step_ = 0;
  Timing timing_;
  std::array<QueuedStep, kQueued + 1> steps_;  // one more: a taken step's logits are still read
  int64_t last_transfer_ = 0;
  std::array<Transfer, 8> transfers_;

  // Working memory of one call.
  std::vector<Write> writes_;
  std::vector<int32_t> write_ids_;
  std::vector<Row> rows_;
  size_t pass_rows_ = 0;  // of the window's latest pass
  std::vector<Group> groups_;
  std::vector<int32_t> wanted_, to_slots_;
  std::vector<Append> appends_;
  std::vector<std::byte> host_asked_;
  EditPlan edits_;
  std::vector<LogprobAsk> asks_;
  DeviceMemory edit_memory_, logprobs_;  // grown as batches ask for more
  std::vector<size_t> ending_;
};

}  // namespace smt::cuda
