// A slot keeps its durable state as the flat bytes of model/state_layout.h, so Save and Load are copies. Derived state
// is the hop cache (keys and values of the window's columns up to token `cached`) and the last position's output.
//
// One routine brings a slot's output up to date whatever happened since: the columns that are missing, which is one
// after a Step, the whole window after a write, a Load or (slide) any token. Since a row's bits do not depend on the
// rows beside it, a rebuilt cache equals one that grew column by column, and refills of some slots ride with columns of
// others.
#include "model/cpu_slot_runner.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/cpu/cpu_memory.h"
#include "model/cpu/cpu_transformer.h"
#include "model/cpu/embedding_table.h"
#include "model/ops/packed_linear.h"
#include "model/ops/parallel.h"

namespace smt {
namespace {

constexpr int64_t kMaxRows = 1024;  // of one pass through the transformer
constexpr int64_t kMaxWrites = 64;  // of one pass through the SSM

class Stopwatch {
 public:
  double Seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class CpuSlotRunner final : public SlotRunner {
 public:
  CpuSlotRunner(const StrideHybridConfig& config, const CpuSlotRunnerOptions& options, EmbeddingTable embeddings,
                std::unique_ptr<CpuTransformer> transformer, std::unique_ptr<CpuMemory> memory, ops::PackedLinear head)
      : config_(config),
        layout_(config),
        bfloat16_(options.bfloat16),
        kernels_(options.kernels != nullptr ? *options.kernels : ops::BestKernels()),
        pool_(options.threads),
        embeddings_(std::move(embeddings)),
        transformer_(std::move(transformer)),
        memory_(std::move(memory)),
        head_(std::move(head)),
        slots_(static_cast<size_t>(options.slots)) {
    for (Slot& slot : slots_) slot.state.resize(layout_.bytes() / sizeof(int64_t) + 1);
  }

  const StrideHybridConfig& config() const override { return config_; }
  const StateLayout& layout() const override { return layout_; }
  int32_t slots() const override { return static_cast<int32_t>(slots_.size()); }
  bool deterministic() const override { return true; }
  std::string numerics_id() const override {
    return absl::StrCat("cpu/", bfloat16_ ? "bfloat16" : "float32", "/fma1/deterministic");
  }

  int64_t position(int32_t slot) const override { return layout_.position(At(slot).bytes(layout_)); }
  void Reset(int32_t slot) override;
  void Load(int32_t slot, std::span<const std::byte> state) override;
  void Save(int32_t slot, std::span<std::byte> state) override;
  void Copy(int32_t from, int32_t to) override;
  void Ingest(std::span<const Chunk> chunks) override;
  void Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) override;
  void Logits(std::span<const int32_t> slots, float* logits) override;
  void SetWriteObserver(std::function<void(const WriteEvent&)> observer) override { observer_ = std::move(observer); }
  int64_t slot_bytes() const override {
    return static_cast<int64_t>(layout_.bytes()) +
           (transformer_->cache_floats() + config_.d_model) * static_cast<int64_t>(sizeof(float));
  }
  SlotCapacity capacity() const override { return MachineCapacity(slot_bytes()); }
  Timings TakeTimings() override { return std::exchange(timings_, {}); }

 private:
  struct Slot {
    std::vector<int64_t> state;  // layout_.bytes() bytes
    std::vector<float> cache;    // allocated when first needed
    std::vector<float> output;   // [D] of the position `output_at`
    int64_t cached = -1;         // the cache holds every window column up to this token; -1: nothing
    int64_t output_at = -1;

    std::span<std::byte> bytes(const StateLayout& layout) {
      return {reinterpret_cast<std::byte*>(state.data()), layout.bytes()};
    }
    std::span<const std::byte> bytes(const StateLayout& layout) const {
      return {reinterpret_cast<const std::byte*>(state.data()), layout.bytes()};
    }
    void Forget() { cached = output_at = -1; }
  };
  // A write under way: where its pooled rows and results are.
  struct Pending {
    int32_t slot;
    int64_t position;
  };

  const Slot& At(int32_t slot) const;
  Slot& At(int32_t slot) { return const_cast<Slot&>(std::as_const(*this).At(slot)); }
  void CheckIds(std::span<const int32_t> ids) const;

  void Append(Slot& slot, std::span<const int32_t> ids);
  void BeginWrite(int32_t slot);  // gathers what the slot's window holds now
  void FinishWrites();            // pools, steps the SSM, pushes onto memory
  // Brings the outputs of these slots' last positions up to date.
  void Refresh(std::span<const int32_t> slots);
  int64_t TokensInWindow(int64_t position) const;
  void RowsOf(Slot& slot);  // appends the missing rows of one slot to rows_ and inputs_
  void RunRows();
  void Head(std::span<const int32_t> slots, float* logits);

  const StrideHybridConfig config_;
  const StateLayout layout_;
  const bool bfloat16_;
  const ops::Kernels& kernels_;
  ops::ThreadPool pool_;
  const EmbeddingTable embeddings_;
  const std::unique_ptr<CpuTransformer> transformer_;
  const std::unique_ptr<CpuMemory> memory_;
  const ops::PackedLinear head_;
  std::vector<Slot> slots_;
  std::function<void(const WriteEvent&)> observer_;
  Timings timings_;

  // Working memory of one call.
  std::vector<Pending> pending_;
  std::vector<float> pooled_rows_;   // [kMaxWrites, W, D]
  std::vector<float> pool_weights_;  // [kMaxWrites, W]
  std::vector<float> written_;       // [kMaxWrites, D]
  std::vector<CpuMemory::Write> writes_;
  struct Input {          // one transformer row before it is looked up
    const float* memory;  // or null:
    int32_t id;
  };
  std::vector<CpuTransformer::Row> rows_;
  std::vector<Input> inputs_;
  std::vector<Slot*> refreshed_;  // slots whose last row is in rows_, in order
  Scratch x_, outputs_;
};

const CpuSlotRunner::Slot& CpuSlotRunner::At(int32_t slot) const {
  if (slot < 0 || slot >= slots()) {
    throw std::invalid_argument(absl::StrCat("slot is ", slot, "; allowed: 0 to ", slots() - 1));
  }
  return slots_[static_cast<size_t>(slot)];
}

void CpuSlotRunner::CheckIds(std::span<const int32_t> ids) const {
  for (const int32_t id : ids) {
    if (id < 0 || id >= config_.vocab_size) {
      throw std::invalid_argument(absl::StrCat("token id is ", id, "; allowed: 0 to ", config_.vocab_size - 1));
    }
  }
}

void CpuSlotRunner::Reset(int32_t slot) {
  Slot& s = At(slot);
  std::fill(s.state.begin(), s.state.end(), 0);
  s.Forget();
}

void CpuSlotRunner::Load(int32_t slot, std::span<const std::byte> state) {
  Slot& s = At(slot);
  if (state.size() != layout_.bytes()) {
    throw std::invalid_argument(absl::StrCat("state has ", state.size(), " bytes; expected ", layout_.bytes()));
  }
  int64_t position = 0;
  std::memcpy(&position, state.data(), sizeof(position));
  if (position < 0) throw std::invalid_argument(absl::StrCat("state's position is ", position, "; allowed: >= 0"));
  CheckIds(layout_.tokens(state));
  std::memcpy(s.state.data(), state.data(), state.size());
  s.Forget();
}

void CpuSlotRunner::Save(int32_t slot, std::span<std::byte> state) {
  const Slot& s = At(slot);
  if (state.size() != layout_.bytes()) {
    throw std::invalid_argument(absl::StrCat("buffer has ", state.size(), " bytes; expected ", layout_.bytes()));
  }
  std::memcpy(state.data(), s.state.data(), state.size());
}

void CpuSlotRunner::Copy(int32_t from, int32_t to) {
  const Slot& source = At(from);
  Slot& target = At(to);
  if (from != to) target = source;
}

void CpuSlotRunner::Append(Slot& slot, std::span<const int32_t> ids) {
  const std::span<std::byte> bytes = slot.bytes(layout_);
  const std::span<int32_t> tokens = layout_.tokens(bytes);
  int64_t& position = layout_.position(bytes);
  const int64_t m = config_.m_input_tokens;
  const int64_t valid = layout_.tokens_valid(position);
  const int64_t added = static_cast<int64_t>(ids.size());
  const int64_t kept = std::min(valid, std::max<int64_t>(0, m - added));
  std::move(tokens.begin() + (valid - kept), tokens.begin() + valid, tokens.begin());
  const int64_t taken = std::min(added, m);
  std::copy(ids.end() - taken, ids.end(), tokens.begin() + kept);
  position += added;
}

void CpuSlotRunner::BeginWrite(int32_t index) {
  Slot& slot = At(index);
  const std::span<std::byte> bytes = slot.bytes(layout_);
  const int64_t position = layout_.position(bytes), d = config_.d_model, w = config_.window();
  const int64_t at = static_cast<int64_t>(pending_.size());
  pooled_rows_.resize(std::max(pooled_rows_.size(), static_cast<size_t>((at + 1) * w * d)));
  float* rows = pooled_rows_.data() + at * w * d;
  int64_t count = 0;
  if (config_.pool_scope == PoolScope::kWindow) {
    count = layout_.memory_valid(position - 1);
    std::memcpy(rows, layout_.memory(bytes).data(), static_cast<size_t>(count * d) * sizeof(float));
  }
  const std::span<const int32_t> tokens = layout_.tokens(bytes).first(layout_.tokens_valid(position));
  for (const int32_t id : tokens) embeddings_.Row(kernels_, id, rows + count++ * d);
  pending_.push_back({index, position});
  writes_.push_back({.rows = nullptr,  // known once pooled_rows_ has stopped growing
                     .count = count,
                     .conv = layout_.conv(bytes).data(),
                     .state = layout_.state(bytes).data(),
                     .weights = nullptr,
                     .output = nullptr});
}

void CpuSlotRunner::FinishWrites() {
  if (pending_.empty()) return;
  const Stopwatch watch;
  const int64_t d = config_.d_model, w = config_.window(), n = config_.n_ssm_outputs;
  const int64_t count = static_cast<int64_t>(pending_.size());
  pool_weights_.assign(static_cast<size_t>(count * w), 0.0f);
  written_.resize(static_cast<size_t>(count * d));
  for (int64_t i = 0; i < count; ++i) {
    writes_[i].rows = pooled_rows_.data() + i * w * d;
    writes_[i].weights = pool_weights_.data() + i * w;
    writes_[i].output = written_.data() + i * d;
  }
  memory_->Run(kernels_, pool_, writes_);
  for (int64_t i = 0; i < count; ++i) {
    Slot& slot = At(pending_[i].slot);
    const std::span<float> memory = layout_.memory(slot.bytes(layout_));
    int64_t valid = layout_.memory_valid(pending_[i].position - 1);
    if (valid == n) {
      std::memmove(memory.data(), memory.data() + d, static_cast<size_t>((n - 1) * d) * sizeof(float));
      --valid;
    }
    std::memcpy(memory.data() + valid * d, writes_[i].output, static_cast<size_t>(d) * sizeof(float));
    slot.Forget();
    if (observer_) {
      observer_({.slot = pending_[i].slot,
                 .position = pending_[i].position,
                 .pool_weights = {writes_[i].weights, static_cast<size_t>(w)},
                 .ssm_output = {writes_[i].output, static_cast<size_t>(d)}});
    }
  }
  pending_.clear();
  writes_.clear();
  timings_.write += watch.Seconds();
}

void CpuSlotRunner::Ingest(std::span<const Chunk> chunks) {
  for (const Chunk& chunk : chunks) {
    At(chunk.slot);
    CheckIds(chunk.ids);
  }
  const ops::ThreadPool::Region region(pool_);
  std::vector<Chunk> left(chunks.begin(), chunks.end());
  const int64_t s = config_.stride;
  // A write under `window` needs the one before it, so rounds take one stride of each session; under `tokens` a round
  // takes as many as fit.
  const bool independent = config_.pool_scope == PoolScope::kTokens;
  while (!left.empty()) {
    for (Chunk& chunk : left) {
      Slot& slot = At(chunk.slot);
      while (!chunk.ids.empty()) {
        if (static_cast<int64_t>(pending_.size()) == kMaxWrites) FinishWrites();
        const int64_t position = layout_.position(slot.bytes(layout_));
        const int64_t to_boundary = s - position % s;
        const int64_t take = std::min<int64_t>(to_boundary, static_cast<int64_t>(chunk.ids.size()));
        Append(slot, chunk.ids.first(static_cast<size_t>(take)));
        chunk.ids = chunk.ids.subspan(static_cast<size_t>(take));
        if (take < to_boundary) continue;  // the chunk has ended
        BeginWrite(chunk.slot);
        if (!independent) break;
      }
    }
    FinishWrites();
    std::erase_if(left, [](const Chunk& chunk) { return chunk.ids.empty(); });
  }
}

int64_t CpuSlotRunner::TokensInWindow(int64_t position) const {
  if (config_.window_policy == WindowPolicy::kSlide) return std::min(position, config_.m_input_tokens);
  const int64_t last_write = position - position % config_.stride;
  return std::min(last_write, config_.m_input_tokens - config_.stride) + position - last_write;
}

void CpuSlotRunner::RowsOf(Slot& slot) {
  const std::span<std::byte> bytes = slot.bytes(layout_);
  const int64_t position = layout_.position(bytes), n = config_.n_ssm_outputs;
  const int64_t memory_valid = layout_.memory_valid(position);
  const int64_t count = TokensInWindow(position);
  const int64_t missing = slot.cached < 0 ? count : position - slot.cached;  // Forget() comes with every write
  if (slot.cache.empty()) slot.cache.resize(static_cast<size_t>(transformer_->cache_floats()));
  if (slot.cached < 0) {
    for (int64_t i = 0; i < memory_valid; ++i) {
      rows_.push_back({.cache = slot.cache.data(), .memory_valid = memory_valid, .column = i, .wanted = false});
      inputs_.push_back({layout_.memory(bytes).data() + i * config_.d_model, 0});
    }
  }
  const std::span<const int32_t> tokens = layout_.tokens(bytes);
  const int64_t first = layout_.tokens_valid(position) - count;  // of the window, among the kept tokens
  for (int64_t j = count - missing; j < count; ++j) {
    rows_.push_back(
        {.cache = slot.cache.data(), .memory_valid = memory_valid, .column = n + j, .wanted = j + 1 == count});
    inputs_.push_back({nullptr, tokens[first + j]});
  }
  // Under `slide` the columns move with every token: nothing of the cache outlives the step.
  slot.cached = config_.window_policy == WindowPolicy::kHop ? position : -1;
  slot.output_at = position;
  refreshed_.push_back(&slot);
}

void CpuSlotRunner::RunRows() {
  if (rows_.empty()) return;
  const Stopwatch watch;
  const int64_t d = config_.d_model;
  x_.Resize(static_cast<int64_t>(rows_.size()), d);
  pool_.For((static_cast<int64_t>(rows_.size()) + 7) / 8, [&](int64_t piece) {
    const int64_t end = std::min<int64_t>(static_cast<int64_t>(rows_.size()), (piece + 1) * 8);
    for (int64_t i = piece * 8; i < end; ++i) {
      if (inputs_[i].memory != nullptr) {
        std::memcpy(x_.row(i), inputs_[i].memory, static_cast<size_t>(d) * sizeof(float));
      } else {
        embeddings_.Row(kernels_, inputs_[i].id, x_.row(i));
      }
      if (bfloat16_) EmbeddingTable::Round(d, x_.row(i));
    }
  });
  outputs_.Resize(static_cast<int64_t>(refreshed_.size()), d);
  transformer_->Run(kernels_, pool_, rows_, x_, outputs_.data(), outputs_.stride());
  for (size_t i = 0; i < refreshed_.size(); ++i) {
    const float* output = outputs_.row(static_cast<int64_t>(i));
    refreshed_[i]->output.assign(output, output + d);
  }
  // Rows of both kinds share the matrix products, so time is divided by their numbers.
  const double newest = static_cast<double>(refreshed_.size()) / static_cast<double>(rows_.size());
  timings_.decode += watch.Seconds() * newest;
  timings_.refill += watch.Seconds() * (1 - newest);
  rows_.clear();
  inputs_.clear();
  refreshed_.clear();
}

void CpuSlotRunner::Refresh(std::span<const int32_t> slots) {
  for (const int32_t index : slots) {
    Slot& slot = At(index);
    const int64_t position = layout_.position(slot.bytes(layout_));
    if (position == 0) throw std::invalid_argument(absl::StrCat("slot ", index, " is empty: it has no logits yet"));
    if (slot.output_at == position) continue;
    RowsOf(slot);
    if (static_cast<int64_t>(rows_.size()) >= kMaxRows) RunRows();
  }
  RunRows();
}

void CpuSlotRunner::Head(std::span<const int32_t> slots, float* logits) {
  const Stopwatch watch;
  const int64_t count = static_cast<int64_t>(slots.size()), d = config_.d_model;
  outputs_.Resize(count, d);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(outputs_.row(i), At(slots[i]).output.data(), static_cast<size_t>(d) * sizeof(float));
  }
  head_.Forward(kernels_, pool_, outputs_.data(), outputs_.stride(), count, logits, config_.vocab_size);
  timings_.decode += watch.Seconds();
}

void CpuSlotRunner::Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) {
  if (slots.size() != ids.size()) {
    throw std::invalid_argument(absl::StrCat("Step got ", slots.size(), " slots and ", ids.size(), " ids"));
  }
  for (const int32_t slot : slots) At(slot);
  CheckIds(ids);
  const ops::ThreadPool::Region region(pool_);
  for (size_t i = 0; i < slots.size(); ++i) {
    Append(At(slots[i]), ids.subspan(i, 1));
    if (position(slots[i]) % config_.stride != 0) continue;
    if (static_cast<int64_t>(pending_.size()) == kMaxWrites) FinishWrites();
    BeginWrite(slots[i]);
  }
  FinishWrites();
  Refresh(slots);
  Head(slots, logits);
}

void CpuSlotRunner::Logits(std::span<const int32_t> slots, float* logits) {
  const ops::ThreadPool::Region region(pool_);
  Refresh(slots);
  Head(slots, logits);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SlotRunner>> NewCpuSlotRunner(const StrideHybridConfig& config,
                                                             const WeightSource& source,
                                                             const CpuSlotRunnerOptions& options) {
  if (options.slots < 1) {
    return absl::InvalidArgumentError(absl::StrCat("slots is ", options.slots, "; allowed: >= 1"));
  }
  if (options.threads < 0) {
    return absl::InvalidArgumentError(absl::StrCat("threads is ", options.threads, "; allowed: >= 0"));
  }
  const int64_t v = config.vocab_size, d = config.d_model;
  ASSIGN_OR_RETURN(const std::vector<float> wte, source("transformer.wte.weight", {v, d}));
  ops::PackedLinear head;
  if (config.tie_word_embeddings) {
    head = ops::PackedLinear(wte.data(), d, v, 1, d, nullptr, options.bfloat16);
  } else {
    ASSIGN_OR_RETURN(const std::vector<float> lm_head, source("lm_head.weight", {v, d}));
    head = ops::PackedLinear(lm_head.data(), d, v, 1, d, nullptr, options.bfloat16);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<CpuTransformer> transformer,
                   CpuTransformer::Create(config, source, options.bfloat16));
  ASSIGN_OR_RETURN(std::unique_ptr<CpuMemory> memory, CpuMemory::Create(config, source));
  return std::make_unique<CpuSlotRunner>(config, options, EmbeddingTable(wte, d), std::move(transformer),
                                         std::move(memory), std::move(head));
}

}  // namespace smt
