#include "model/torch_slot_runner.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/key_value_cache.h"

namespace smt {
namespace {

// How many rows go through an operator together.
struct Tile {
  int64_t most;  // at most so many; the rest waits for the next tile
  bool padded;   // always exactly so many
};

class TorchSlotRunner : public SlotRunner {
 public:
  TorchSlotRunner(StrideHybridModel model, const TorchSlotRunnerOptions& options);

  const StrideHybridConfig& config() const override { return config_; }
  const StateLayout& layout() const override { return windows_.layout(); }
  int32_t slots() const override { return windows_.slots(); }
  bool deterministic() const override { return deterministic_; }
  std::string numerics_id() const override;

  int64_t position(int32_t slot) const override { return windows_.position(slot); }
  void Reset(int32_t slot) override;
  void Load(int32_t slot, std::span<const std::byte> state) override;
  void Save(int32_t slot, std::span<std::byte> state) override;
  void Copy(int32_t from, int32_t to) override;
  void Ingest(std::span<const Chunk> chunks) override;
  void Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) override;
  void Logits(std::span<const int32_t> slots, float* logits) override;
  void SetWriteObserver(std::function<void(const WriteEvent&)> observer) override { observer_ = std::move(observer); }

 private:
  static constexpr int64_t kNothingCached = -1;

  // Calls run(slots of one tile, padding included, how many are real).
  template <typename Run>
  void ForEachTile(std::span<const int32_t> slots, const Tile& tile, Run run);
  void Write(std::span<const int32_t> slots);  // slots at a stride boundary
  void Observe(std::span<const int32_t> slots, const WriteResult& result);
  void BringUp(std::span<const int32_t> slots);  // hidden_ is that of each slot's present position
  void BringUpHop(std::span<const int32_t> slots);
  void Recompute(std::span<const int32_t> slots);  // slide
  void Refill(std::span<const int32_t> slots);     // hop, as at the last write
  void Column(std::span<const int32_t> slots);     // hop, the next token not cached
  void KeepLast(std::span<const int32_t> slots, int64_t real, const at::Tensor& hidden, const at::Tensor& last);
  at::Tensor Indices(std::span<const int32_t> values) const;  // int64 on the device

  StrideHybridModel model_;
  StrideHybridConfig config_;
  const bool deterministic_;
  const Tile window_tile_, write_tile_, column_tile_;
  BatchedWindowManager windows_;
  KeyValueCache cache_;         // hop only: no slots under slide
  std::vector<int64_t> shown_;  // [slots + 1] the position that hidden_ and the cache stand at
  at::Tensor hidden_;           // [slots + 1, D] the transformer's last row there, in the window's dtype
  std::function<void(const WriteEvent&)> observer_;
};

StrideHybridConfig WithPolicy(StrideHybridConfig config, std::optional<WindowPolicy> policy) {
  config.window_policy = policy.value_or(config.window_policy);
  return config;
}

// On a CPU every row goes alone: MKL's results depend on how a row is aligned, so on where it lies in a batch, and a
// fixed shape would not be enough. On a GPU it is, and tiles keep it busy.
TorchSlotRunner::TorchSlotRunner(StrideHybridModel model, const TorchSlotRunnerOptions& options)
    : model_(std::move(model)),
      config_(WithPolicy(model_->config(), options.window_policy)),
      deterministic_(options.deterministic),
      window_tile_{deterministic_ ? (model_->device().is_cpu() ? 1 : 8) : 64, deterministic_},
      write_tile_{deterministic_ ? (model_->device().is_cpu() ? 1 : 16) : 64, deterministic_},
      column_tile_{deterministic_ ? (model_->device().is_cpu() ? 1 : 64) : 1024, deterministic_},
      windows_(config_, *model_->ssm, options.slots, model_->device()),
      cache_(config_, config_.window_policy == WindowPolicy::kHop ? options.slots + 1 : 0, model_->window_dtype(),
             model_->device()),
      shown_(options.slots + 1, kNothingCached),
      hidden_(at::zeros({options.slots + 1, config_.d_model},
                        at::TensorOptions().dtype(model_->window_dtype()).device(model_->device()))) {}

std::string TorchSlotRunner::numerics_id() const {
  return absl::StrCat("torch/", model_->device().str(), "/", c10::toString(model_->window_dtype()), "/threads",
                      at::get_num_threads(), "/", std::string(Name(config_.window_policy)), "/",
                      deterministic_ ? "deterministic" : "batched");
}

at::Tensor TorchSlotRunner::Indices(std::span<const int32_t> values) const {
  const at::Tensor host = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), host.data_ptr<int64_t>());
  return host.to(model_->device());
}

template <typename Run>
void TorchSlotRunner::ForEachTile(std::span<const int32_t> slots, const Tile& tile, Run run) {
  for (size_t start = 0; start < slots.size(); start += tile.most) {
    const size_t real = std::min<size_t>(tile.most, slots.size() - start);
    std::vector<int32_t> rows(slots.begin() + start, slots.begin() + start + real);
    if (tile.padded) rows.resize(tile.most, windows_.scratch());
    run(std::span<const int32_t>(rows), static_cast<int64_t>(real));
  }
}

void TorchSlotRunner::Reset(int32_t slot) {
  c10::InferenceMode inference;
  windows_.Reset(slot);
  shown_[slot] = kNothingCached;
}

void TorchSlotRunner::Load(int32_t slot, std::span<const std::byte> state) {
  c10::InferenceMode inference;
  windows_.Load(slot, state);
  shown_[slot] = kNothingCached;
}

void TorchSlotRunner::Save(int32_t slot, std::span<std::byte> state) {
  c10::InferenceMode inference;
  windows_.Save(slot, state);
}

void TorchSlotRunner::Copy(int32_t from, int32_t to) {
  c10::InferenceMode inference;
  if (from == to) return;
  windows_.Copy(from, to);
  shown_[to] = kNothingCached;
}

void TorchSlotRunner::Ingest(std::span<const Chunk> chunks) {
  c10::InferenceMode inference;
  std::vector<size_t> taken(chunks.size(), 0);
  // Rounds of one stride each: every chunk up to its next write, then these writes together.
  for (bool left = true; left;) {
    left = false;
    std::vector<int32_t> writing;
    for (size_t c = 0; c < chunks.size(); ++c) {
      const auto& [slot, ids] = chunks[c];
      while (taken[c] < ids.size()) {
        windows_.Append(slot, ids[taken[c]++]);
        if (!WritesAt(config_, windows_.position(slot))) continue;
        writing.push_back(slot);
        break;
      }
      left |= taken[c] < ids.size();
    }
    Write(writing);
  }
}

void TorchSlotRunner::Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) {
  c10::InferenceMode inference;
  std::vector<int32_t> writing;
  for (size_t i = 0; i < slots.size(); ++i) {
    windows_.Append(slots[i], ids[i]);
    if (WritesAt(config_, windows_.position(slots[i]))) writing.push_back(slots[i]);
  }
  Write(writing);
  Logits(slots, logits);
}

void TorchSlotRunner::Logits(std::span<const int32_t> slots, float* logits) {
  c10::InferenceMode inference;
  for (const int32_t slot : slots) {
    if (windows_.position(slot) == 0)
      throw std::invalid_argument(absl::StrCat("slot ", slot, " is empty: no logits yet"));
  }
  BringUp(slots);
  const int64_t vocabulary = config_.vocab_size;
  ForEachTile(slots, column_tile_, [&](std::span<const int32_t> rows, int64_t real) {
    const at::Tensor scores = model_->Head(at::index_select(hidden_, 0, Indices(rows)));
    at::from_blob(logits, {real, vocabulary}, at::kFloat).copy_(scores.narrow(0, 0, real));
    logits += real * vocabulary;
  });
}

void TorchSlotRunner::Write(std::span<const int32_t> slots) {
  ForEachTile(slots, write_tile_, [&](std::span<const int32_t> rows, int64_t real) {
    std::vector<TokenRange> seen;
    for (const int32_t slot : rows) seen.push_back(LastTokens(config_, std::max<int64_t>(1, windows_.position(slot))));
    WriteResult result = model_->Write(windows_.Gather(rows, seen, config_.m_input_tokens), windows_.GatherSsm(rows));
    const std::span<const int32_t> kept = rows.first(real);
    if (observer_) Observe(kept, result);
    // Nobody's rows are dropped: their state stays zero.
    SsmResult& memory = result.memory;
    memory.output = memory.output.narrow(0, 0, real);
    for (at::Tensor& layer : memory.state.conv) layer = layer.narrow(0, 0, real);
    for (at::Tensor& layer : memory.state.state) layer = layer.narrow(0, 0, real);
    windows_.Push(kept, memory);
  });
}

void TorchSlotRunner::Observe(std::span<const int32_t> slots, const WriteResult& result) {
  const at::Tensor weights = result.pooled.weights.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor outputs = result.memory.output.to(at::kCPU, at::kFloat).contiguous();
  const int64_t n = config_.n_ssm_outputs, width = config_.window();
  for (size_t i = 0; i < slots.size(); ++i) {
    // Rows as they were pooled: the memory vectors there were before this write, then the tokens.
    const int64_t t = windows_.position(slots[i]);
    const bool pools_memory = config_.pool_scope == PoolScope::kWindow;
    const int64_t vectors = pools_memory ? std::min(n, t / config_.stride - 1) : 0;
    const float* row = weights.const_data_ptr<float>() + i * width;
    std::vector<float> pooled(row, row + vectors);
    pooled.insert(pooled.end(), row + n, row + n + LastTokens(config_, t).count);
    pooled.resize(width, 0.0f);
    const float* output = outputs.const_data_ptr<float>() + i * config_.d_model;
    observer_({slots[i], t, pooled, {output, static_cast<size_t>(config_.d_model)}});
  }
}

void TorchSlotRunner::BringUp(std::span<const int32_t> slots) {
  if (config_.window_policy == WindowPolicy::kHop) return BringUpHop(slots);
  std::vector<int32_t> behind;
  for (const int32_t slot : slots) {
    if (shown_[slot] != windows_.position(slot)) behind.push_back(slot);
  }
  Recompute(behind);
}

void TorchSlotRunner::BringUpHop(std::span<const int32_t> slots) {
  std::vector<int32_t> refills;
  for (const int32_t slot : slots) {
    const int64_t write = LastWriteAt(config_, windows_.position(slot));
    if (shown_[slot] != kNothingCached && shown_[slot] >= write) continue;
    if (write > 0) refills.push_back(slot);
    shown_[slot] = write;
  }
  Refill(refills);
  for (;;) {
    std::vector<int32_t> behind;
    for (const int32_t slot : slots) {
      if (shown_[slot] < windows_.position(slot)) behind.push_back(slot);
    }
    if (behind.empty()) return;
    Column(behind);
    for (const int32_t slot : behind) ++shown_[slot];
  }
}

void TorchSlotRunner::Recompute(std::span<const int32_t> slots) {
  ForEachTile(slots, window_tile_, [&](std::span<const int32_t> rows, int64_t real) {
    std::vector<TokenRange> seen;
    for (const int32_t slot : rows) seen.push_back(LastTokens(config_, std::max<int64_t>(1, windows_.position(slot))));
    const WindowBatch window = windows_.Gather(rows, seen, config_.m_input_tokens);
    KeepLast(rows, real, model_->Window(window), window.last);
    for (int64_t i = 0; i < real; ++i) shown_[rows[i]] = windows_.position(rows[i]);
  });
}

void TorchSlotRunner::Refill(std::span<const int32_t> slots) {
  ForEachTile(slots, window_tile_, [&](std::span<const int32_t> rows, int64_t real) {
    std::vector<TokenRange> kept;
    for (const int32_t slot : rows) {
      kept.push_back(RefillTokens(config_, std::max<int64_t>(1, LastWriteAt(config_, windows_.position(slot)))));
    }
    const WindowBatch window = windows_.Gather(rows, kept, config_.m_input_tokens - config_.stride);
    const at::Tensor embeddings = model_->WindowEmbeddings(window);
    RefillAttention attention(cache_, Indices(rows.first(real)), CausalBias(window.mask, model_->window_dtype()));
    const at::Tensor positions = at::arange(embeddings.size(1), window.ids.options());
    KeepLast(rows, real, model_->transformer->Run(embeddings, positions, attention), window.last);
  });
}

void TorchSlotRunner::Column(std::span<const int32_t> slots) {
  const int64_t n = config_.n_ssm_outputs, width = config_.window();
  ForEachTile(slots, column_tile_, [&](std::span<const int32_t> rows, int64_t real) {
    const int64_t batch = rows.size();
    // [4, B]: id, column, memory vectors, slot.
    const at::Tensor host = at::empty({4, batch}, at::kLong);
    int64_t* values = host.data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b) {
      const int32_t slot = rows[b];
      const bool padding = b >= real;
      const int64_t t = padding ? 1 : shown_[slot] + 1;
      values[b] = padding ? 0 : windows_.TokenAt(slot, t);
      values[batch + b] = n + LogitsTokens(config_, WindowPolicy::kHop, t).count - 1;
      values[2 * batch + b] = std::min(n, t / config_.stride);
      values[3 * batch + b] = slot;
    }
    const at::Tensor device = host.to(model_->device());
    const at::Tensor columns = device.select(0, 1), vectors = device.select(0, 2).unsqueeze(1);
    const at::Tensor every = at::arange(width, device.options()).unsqueeze(0);  // [1, W]
    const at::Tensor mask = every.lt(vectors).logical_or(every.ge(n).logical_and(every.le(columns.unsqueeze(1))));
    CachedColumnAttention attention(cache_, device.select(0, 3), columns, mask, real);
    const at::Tensor embeddings = model_->Embed(device.select(0, 0)).unsqueeze(1).to(model_->window_dtype());
    const at::Tensor hidden = model_->transformer->Run(embeddings, columns.unsqueeze(1), attention);  // [B, 1, D]
    KeepLast(rows, real, hidden, at::zeros({batch}, device.options()));
  });
}

void TorchSlotRunner::KeepLast(std::span<const int32_t> slots, int64_t real, const at::Tensor& hidden,
                               const at::Tensor& last) {
  const int64_t batch = hidden.size(0), rows = hidden.size(1);
  const at::Tensor at = at::arange(batch, last.options()) * rows + last;
  const at::Tensor newest = at::index_select(hidden.reshape({batch * rows, config_.d_model}), 0, at);
  hidden_.index_copy_(0, Indices(slots.first(real)), newest.narrow(0, 0, real));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SlotRunner>> NewTorchSlotRunner(StrideHybridModel model,
                                                               const TorchSlotRunnerOptions& options) {
  if (options.slots < 1) {
    return absl::InvalidArgumentError(absl::StrCat("slots is ", options.slots, ", allowed 1 or more"));
  }
  StrideHybridConfig config = WithPolicy(model->config(), options.window_policy);
  if (config.window_policy == WindowPolicy::kHop && config.stride >= config.m_input_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("window_policy is hop, allowed only where stride (", config.stride,
                                                   ") < m_input_tokens (", config.m_input_tokens, ")"));
  }
  c10::InferenceMode inference;
  return std::make_unique<TorchSlotRunner>(std::move(model), options);
}

}  // namespace smt
