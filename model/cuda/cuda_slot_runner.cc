#include "model/cuda/cuda_slot_runner.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/cuda/cuda_weights.h"
#include "model/cuda/device_memory.h"
#include "model/cuda/transformer_pass.h"
#include "model/cuda/write_pass.h"

namespace smt {
namespace cuda {

void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

namespace {

class Stream {
 public:
  Stream() { CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaSlotRunner final : public SlotRunner {
 public:
  CudaSlotRunner(const StrideHybridConfig& config, const CudaSlotRunnerOptions& options, const SlotCapacity& capacity,
                 std::unique_ptr<CudaWeights> weights)
      : config_(config),
        layout_(config),
        capacity_(capacity),
        index_(options.index),
        weights_(std::move(weights)),
        transformer_(config, weights_.get(), options.slots, stream_.get()),
        writer_(config, weights_.get(), stream_.get()),
        stride_((layout_.bytes() + 255) / 256 * 256),
        state_(static_cast<size_t>(options.slots) * stride_),
        asked_(static_cast<size_t>(options.slots) * (sizeof(cuda::Draw) + sizeof(int32_t))),
        drawn_(static_cast<size_t>(options.slots) * sizeof(int32_t)),
        slots_(static_cast<size_t>(options.slots)) {
    cudaDeviceProp properties;
    CheckCuda(cudaGetDeviceProperties(&properties, index_), "asking for the device's properties");
    numerics_id_ =
        absl::StrCat("cuda/sm_", properties.major, properties.minor, "/",
                     options.bfloat16 ? "bfloat16+split" : "float32", "/pieces", kChunks, "/2/deterministic");
    // Where the sections of a slot begin, as its bytes on the host have them.
    std::vector<int64_t> sample(layout_.bytes() / sizeof(int64_t) + 1);
    const std::span<std::byte> bytes(reinterpret_cast<std::byte*>(sample.data()), layout_.bytes());
    const auto offset = [&](std::span<float> section) {
      return reinterpret_cast<std::byte*>(section.data()) - bytes.data();
    };
    memory_ = {.base = state_.as<std::byte>(),
               .stride = static_cast<int64_t>(stride_),
               .memory_at = offset(layout_.memory(bytes)),
               .conv_at = offset(layout_.conv(bytes)),
               .state_at = offset(layout_.state(bytes))};
    for (Slot& slot : slots_) slot.tokens.reserve(static_cast<size_t>(config.m_input_tokens));
  }

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
  bool StepAndDraw(std::span<const int32_t> slots, std::span<const int32_t> ids,
                   std::span<const SlotRunner::Draw> draws, int32_t* drawn) override;
  void SetWriteObserver(std::function<void(const WriteEvent&)> observer) override { observer_ = std::move(observer); }
  int64_t slot_bytes() const override {
    return static_cast<int64_t>(stride_) + transformer_.cache_bytes_per_slot() + transformer_.output_bytes_per_slot();
  }
  SlotCapacity capacity() const override { return capacity_; }

 private:
  struct Slot {
    int64_t position = 0;
    std::vector<int32_t> tokens;  // the last min(position, m)
    int64_t cached = -1;          // the cache holds every window column up to this token; -1: not
    bool memory_cached = false;   // it holds the memory columns, which change at a write alone
    int64_t output_at = -1;       // the position whose output is kept
    void Forget() {
      cached = output_at = -1;
      memory_cached = false;
    }
  };

  const Slot& At(int32_t slot) const;
  Slot& At(int32_t slot) { return const_cast<Slot&>(std::as_const(*this).At(slot)); }
  void Begin() const { CheckCuda(cudaSetDevice(index_), "choosing the device"); }  // per thread
  void Wait() const { CheckCuda(cudaStreamSynchronize(stream_.get()), "running the model"); }
  std::byte* StateOf(int32_t slot) const { return memory_.base + slot * memory_.stride; }
  void CheckIds(std::span<const int32_t> ids) const;
  void CheckBytes(size_t bytes) const;

  void Append(Slot& slot, std::span<const int32_t> ids);
  void BeginWrite(int32_t slot);
  void FinishWrites();
  void Observe();
  int64_t TokensInWindow(int64_t position) const;
  void Refresh(std::span<const int32_t> slots);
  // Under `slide` the token columns move with every token: in the cache they do not outlive the step.
  bool KeepsTokens() const { return config_.window_policy == WindowPolicy::kHop; }
  void AddRows(int32_t slot);
  void RunRows();
  void Absorb(std::span<const int32_t> slots, std::span<const int32_t> ids);  // Step without its logits
  void Head(std::span<const int32_t> slots, float* logits);

  const StrideHybridConfig config_;
  const StateLayout layout_;
  const SlotCapacity capacity_;
  const int index_;
  std::string numerics_id_;
  const Stream stream_;
  const std::unique_ptr<CudaWeights> weights_;
  TransformerPass transformer_;
  WritePass writer_;
  const size_t stride_;
  const DeviceMemory state_, asked_, drawn_;
  SlotMemory memory_;
  std::vector<Slot> slots_;
  std::function<void(const WriteEvent&)> observer_;

  // Working memory of one call.
  std::vector<Write> writes_;
  std::vector<int32_t> write_ids_;
  std::vector<Row> rows_;
  std::vector<Group> groups_;
  std::vector<int32_t> wanted_, to_slots_;
  std::vector<std::byte> host_asked_;
};

const CudaSlotRunner::Slot& CudaSlotRunner::At(int32_t slot) const {
  if (slot < 0 || slot >= slots()) {
    throw std::invalid_argument(absl::StrCat("slot is ", slot, "; allowed: 0 to ", slots() - 1));
  }
  return slots_[static_cast<size_t>(slot)];
}

void CudaSlotRunner::CheckIds(std::span<const int32_t> ids) const {
  for (const int32_t id : ids) {
    if (id < 0 || id >= config_.vocab_size) {
      throw std::invalid_argument(absl::StrCat("token id is ", id, "; allowed: 0 to ", config_.vocab_size - 1));
    }
  }
}

void CudaSlotRunner::CheckBytes(size_t bytes) const {
  if (bytes == layout_.bytes()) return;
  throw std::invalid_argument(absl::StrCat("state has ", bytes, " bytes; expected ", layout_.bytes()));
}

void CudaSlotRunner::Reset(int32_t slot) {
  Begin();
  Slot& s = At(slot);
  s.position = 0;
  s.tokens.clear();
  s.Forget();
  CheckCuda(cudaMemsetAsync(StateOf(slot), 0, stride_, stream_.get()), "clearing a slot");
}

void CudaSlotRunner::Load(int32_t slot, std::span<const std::byte> state) {
  Begin();
  Slot& s = At(slot);
  CheckBytes(state.size());
  const int64_t position = layout_.position(state);
  if (position < 0) throw std::invalid_argument(absl::StrCat("state's position is ", position, "; allowed: >= 0"));
  const std::span<const int32_t> tokens = layout_.tokens(state);
  CheckIds(tokens);
  CheckCuda(cudaMemcpyAsync(StateOf(slot), state.data(), state.size(), cudaMemcpyHostToDevice, stream_.get()),
            "loading a slot");
  Wait();
  s.position = position;
  const auto valid = static_cast<size_t>(layout_.tokens_valid(position));
  s.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(valid));
  s.Forget();
}

void CudaSlotRunner::Save(int32_t slot, std::span<std::byte> state) {
  Begin();
  const Slot& s = At(slot);
  CheckBytes(state.size());
  CheckCuda(cudaMemcpyAsync(state.data(), StateOf(slot), state.size(), cudaMemcpyDeviceToHost, stream_.get()),
            "saving a slot");
  Wait();
  layout_.position(state) = s.position;
  const std::span<int32_t> tokens = layout_.tokens(state);
  std::fill(tokens.begin(), tokens.end(), 0);
  std::copy(s.tokens.begin(), s.tokens.end(), tokens.begin());
}

void CudaSlotRunner::Copy(int32_t from, int32_t to) {
  Begin();
  const Slot& source = At(from);
  Slot& target = At(to);
  if (from == to) return;
  CheckCuda(cudaMemcpyAsync(StateOf(to), StateOf(from), stride_, cudaMemcpyDeviceToDevice, stream_.get()),
            "copying a slot");
  target.position = source.position;
  target.tokens = source.tokens;
  target.Forget();  // the cache is rebuilt to the same bits
}

void CudaSlotRunner::Append(Slot& slot, std::span<const int32_t> ids) {
  const auto m = static_cast<size_t>(config_.m_input_tokens);
  slot.position += static_cast<int64_t>(ids.size());
  if (ids.size() > m) ids = ids.last(m);
  const size_t kept = std::min(slot.tokens.size(), m - ids.size());
  slot.tokens.erase(slot.tokens.begin(), slot.tokens.end() - static_cast<std::ptrdiff_t>(kept));
  slot.tokens.insert(slot.tokens.end(), ids.begin(), ids.end());
}

void CudaSlotRunner::BeginWrite(int32_t index) {
  const Slot& slot = At(index);
  const auto valid = static_cast<int32_t>(layout_.memory_valid(slot.position - 1));
  writes_.push_back({.slot = index,
                     .memory_pooled = config_.pool_scope == PoolScope::kWindow ? valid : 0,
                     .memory_valid = valid,
                     .tokens = static_cast<int32_t>(slot.tokens.size())});
  const size_t from = write_ids_.size();
  write_ids_.resize(from + static_cast<size_t>(config_.m_input_tokens));
  std::copy(slot.tokens.begin(), slot.tokens.end(), write_ids_.begin() + static_cast<std::ptrdiff_t>(from));
}

void CudaSlotRunner::FinishWrites() {
  if (writes_.empty()) return;
  writer_.Run(writes_, write_ids_, memory_);
  for (const Write& write : writes_) At(write.slot).Forget();
  if (observer_) Observe();
  writes_.clear();
  write_ids_.clear();
}

void CudaSlotRunner::Observe() {
  const auto w = static_cast<size_t>(config_.window()), d = static_cast<size_t>(config_.d_model);
  const auto ld = static_cast<size_t>(writer_.output_stride());
  std::vector<float> weights(writes_.size() * w), outputs(writes_.size() * ld);
  const auto fetch = [&](std::vector<float>& to, const float* from) {
    CheckCuda(cudaMemcpyAsync(to.data(), from, to.size() * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()),
              "fetching a write");
  };
  fetch(weights, writer_.pool_weights());
  fetch(outputs, writer_.outputs());
  Wait();
  for (size_t i = 0; i < writes_.size(); ++i) {
    observer_({.slot = writes_[i].slot,
               .position = At(writes_[i].slot).position,
               .pool_weights = std::span(weights).subspan(i * w, w),
               .ssm_output = std::span(outputs).subspan(i * ld, d)});
  }
}

void CudaSlotRunner::Ingest(std::span<const Chunk> chunks) {
  for (const Chunk& chunk : chunks) {
    At(chunk.slot);
    CheckIds(chunk.ids);
  }
  Begin();
  std::vector<Chunk> left(chunks.begin(), chunks.end());
  // Rounds of at most one write a session.
  while (!left.empty()) {
    for (Chunk& chunk : left) {
      Slot& slot = At(chunk.slot);
      const int64_t to_boundary = config_.stride - slot.position % config_.stride;
      const auto take = static_cast<size_t>(std::min<int64_t>(to_boundary, static_cast<int64_t>(chunk.ids.size())));
      Append(slot, chunk.ids.first(take));
      chunk.ids = chunk.ids.subspan(take);
      if (take == 0 || static_cast<int64_t>(take) < to_boundary) continue;
      if (writes_.size() == WritePass::kMaxWrites) FinishWrites();
      BeginWrite(chunk.slot);
    }
    FinishWrites();
    std::erase_if(left, [](const Chunk& chunk) { return chunk.ids.empty(); });
  }
}

int64_t CudaSlotRunner::TokensInWindow(int64_t position) const {
  if (config_.window_policy == WindowPolicy::kSlide) return std::min(position, config_.m_input_tokens);
  const int64_t last_write = position - position % config_.stride;
  return std::min(last_write, config_.m_input_tokens - config_.stride) + position - last_write;
}

void CudaSlotRunner::AddRows(int32_t index) {
  Slot& slot = At(index);
  const auto memory_valid = static_cast<int32_t>(layout_.memory_valid(slot.position));
  const auto n = static_cast<int32_t>(config_.n_ssm_outputs);
  const auto count = static_cast<int32_t>(TokensInWindow(slot.position));
  const auto missing = slot.cached < 0 ? count : static_cast<int32_t>(slot.position - slot.cached);
  const auto first = static_cast<int32_t>(rows_.size());
  if (!slot.memory_cached) {
    for (int32_t i = 0; i < memory_valid; ++i) rows_.push_back({index, i, memory_valid, -1 - i});
  }
  const int32_t* window = slot.tokens.data() + slot.tokens.size() - static_cast<size_t>(count);
  for (int32_t j = count - missing; j < count; ++j) {
    rows_.push_back({index, n + j, memory_valid, window[j]});
  }
  const auto added = static_cast<int32_t>(rows_.size()) - first;
  groups_.push_back({index, first, added, memory_valid + count - added, memory_valid});
  wanted_.push_back(static_cast<int32_t>(rows_.size()) - 1);
  to_slots_.push_back(index);
  slot.memory_cached = true;
  slot.cached = KeepsTokens() ? slot.position : -1;
  slot.output_at = slot.position;
}

void CudaSlotRunner::RunRows() {
  if (rows_.empty()) return;
  transformer_.Run(rows_, groups_, wanted_, to_slots_, KeepsTokens(), memory_);
  rows_.clear();
  groups_.clear();
  wanted_.clear();
  to_slots_.clear();
}

void CudaSlotRunner::Refresh(std::span<const int32_t> slots) {
  for (const int32_t index : slots) {
    const Slot& slot = At(index);
    if (slot.position == 0) {
      throw std::invalid_argument(absl::StrCat("slot ", index, " is empty: it has no logits yet"));
    }
    if (slot.output_at == slot.position) continue;
    if (static_cast<int64_t>(rows_.size()) + config_.window() > TransformerPass::kMaxRows) RunRows();
    AddRows(index);
  }
  RunRows();
}

void CudaSlotRunner::Head(std::span<const int32_t> slots, float* logits) {
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  CheckCuda(cudaMemcpyAsync(asked_.data(), slots.data(), slots.size_bytes(), cudaMemcpyHostToDevice, stream_.get()),
            "uploading slots");
  for (size_t first = 0; first < slots.size(); first += TransformerPass::kMaxHeadRows) {
    const size_t count = std::min<size_t>(slots.size() - first, TransformerPass::kMaxHeadRows);
    const float* from = transformer_.Head(asked_.as<int32_t>() + first, static_cast<int>(count));
    CheckCuda(cudaMemcpyAsync(logits + first * vocab, from, count * vocab * sizeof(float), cudaMemcpyDeviceToHost,
                              stream_.get()),
              "fetching logits");
    Wait();
  }
}

void CudaSlotRunner::Absorb(std::span<const int32_t> slots, std::span<const int32_t> ids) {
  if (slots.size() != ids.size()) {
    throw std::invalid_argument(absl::StrCat("Step got ", slots.size(), " slots and ", ids.size(), " ids"));
  }
  for (const int32_t slot : slots) At(slot);
  CheckIds(ids);
  for (size_t i = 0; i < slots.size(); ++i) {
    Append(At(slots[i]), ids.subspan(i, 1));
    if (position(slots[i]) % config_.stride != 0) continue;
    if (writes_.size() == WritePass::kMaxWrites) FinishWrites();
    BeginWrite(slots[i]);
  }
  FinishWrites();
  Refresh(slots);
}

void CudaSlotRunner::Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) {
  Begin();
  Absorb(slots, ids);
  Head(slots, logits);
}

bool CudaSlotRunner::StepAndDraw(std::span<const int32_t> slots, std::span<const int32_t> ids,
                                 std::span<const SlotRunner::Draw> draws, int32_t* drawn) {
  Begin();
  if (ids.empty()) {
    Refresh(slots);
  } else {
    Absorb(slots, ids);
  }
  // Draws, then slots, in one copy.
  const size_t draw_bytes = slots.size() * sizeof(cuda::Draw);
  host_asked_.resize(draw_bytes + slots.size_bytes());
  for (size_t i = 0; i < slots.size(); ++i) {
    const SlotRunner::Draw& draw = draws[i];
    const cuda::Draw how = {draw.temperature, draw.top_p, draw.min_p, draw.top_k, draw.seed, At(slots[i]).position + 1};
    std::memcpy(host_asked_.data() + i * sizeof(how), &how, sizeof(how));
  }
  std::memcpy(host_asked_.data() + draw_bytes, slots.data(), slots.size_bytes());
  CheckCuda(
      cudaMemcpyAsync(asked_.data(), host_asked_.data(), host_asked_.size(), cudaMemcpyHostToDevice, stream_.get()),
      "uploading draws");
  const auto* device_slots = reinterpret_cast<const int32_t*>(asked_.as<std::byte>() + draw_bytes);
  const auto vocab = static_cast<int>(config_.vocab_size);
  for (size_t first = 0; first < slots.size(); first += TransformerPass::kMaxHeadRows) {
    const auto count = static_cast<int>(std::min<size_t>(slots.size() - first, TransformerPass::kMaxHeadRows));
    const float* logits = transformer_.Head(device_slots + first, count);
    DrawIds(logits, vocab, asked_.as<cuda::Draw>() + first, count, vocab, drawn_.as<int32_t>() + first, stream_.get());
  }
  CheckCuda(cudaMemcpyAsync(drawn, drawn_.data(), slots.size_bytes(), cudaMemcpyDeviceToHost, stream_.get()),
            "fetching drawn ids");
  Wait();
  return true;
}

void CudaSlotRunner::Logits(std::span<const int32_t> slots, float* logits) {
  Begin();
  Refresh(slots);
  Head(slots, logits);
}

// What the weights have left for slots, work area and driver, from the sizes that the passes allocate.
SlotCapacity CountCapacity(const StrideHybridConfig& config, const CudaSlotRunnerOptions& options) {
  constexpr int64_t kDriver = 256 << 20;  // roundings, graphs, kernels that are loaded when they are first used
  const int64_t size = options.bfloat16 ? 2 : 4, w = config.window(), d = config.d_model;
  const int64_t ld = Padded(d), ld_inner = Padded(config.d_inner());
  const int64_t ld_parameters = Padded(config.dt_rank() + 2 * config.ssm.d_state);
  const int64_t row =
      sizeof(Row) + sizeof(Group) + 8 + 2 * 4 * ld + size * (2 * ld + Padded(3 * d) + Padded(config.mlp_width()));
  const int64_t head = 4 * config.vocab_size + size * ld;
  const int64_t write = sizeof(Write) + 4 * config.m_input_tokens +
                        4 * (2 * w + 4 * ld + Padded(2 * config.d_inner()) + 3 * ld_inner + ld_parameters) +
                        4 * std::max({ld, ld_inner, ld_parameters});
  size_t available = 0, total = 0;
  CheckCuda(cudaMemGetInfo(&available, &total), "asking for free device memory");
  SlotCapacity capacity;
  capacity.total_bytes = static_cast<int64_t>(total);
  capacity.free_bytes = static_cast<int64_t>(available);
  capacity.work_bytes =
      kDriver + TransformerPass::kMaxRows * row + TransformerPass::kMaxHeadRows * head + WritePass::kMaxWrites * write;
  capacity.slot_bytes = static_cast<int64_t>(StateLayout(config).bytes()) + 256 +
                        (config.transformer.n_layer * 2 * w * d + 8) * size + ld * size + sizeof(Draw) +
                        2 * sizeof(int32_t);
  return capacity;
}

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<SlotRunner>> NewCudaSlotRunner(const StrideHybridConfig& config,
                                                              const WeightSource& source,
                                                              const CudaSlotRunnerOptions& options) {
  if (options.slots < 1) {
    return absl::InvalidArgumentError(absl::StrCat("slots is ", options.slots, "; allowed: >= 1"));
  }
  if (config.window() > cuda::TransformerPass::kMaxRows) {
    return absl::InvalidArgumentError(absl::StrCat("the window (n_ssm_outputs + m_input_tokens) is ", config.window(),
                                                   "; allowed on a GPU: up to ", cuda::TransformerPass::kMaxRows));
  }
  try {
    cuda::CheckCuda(cudaSetDevice(options.index), "choosing the device");
    const cuda::Type type = options.bfloat16 ? cuda::Type::kBfloat16 : cuda::Type::kFloat32;
    ASSIGN_OR_RETURN(std::unique_ptr<cuda::CudaWeights> weights, cuda::CudaWeights::Load(config, source, type));
    const SlotCapacity capacity = cuda::CountCapacity(config, options);
    CudaSlotRunnerOptions chosen = options;
    ASSIGN_OR_RETURN(chosen.slots, SlotsThatFit(capacity, options.slots, options.fewer_slots));
    return std::make_unique<cuda::CudaSlotRunner>(config, chosen, capacity, std::move(weights));
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace smt
