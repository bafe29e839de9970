#include "model/cuda/cuda_slot_runner.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/cuda/cuda_runner.h"

namespace smt {
namespace cuda {

CudaSlotRunner::CudaSlotRunner(const StrideHybridConfig& config, const CudaSlotRunnerOptions& options,
                               const SlotCapacity& capacity, std::unique_ptr<CudaWeights> weights)
    : config_(config),
      layout_(config),
      capacity_(capacity),
      index_(options.index),
      write_stream_(Stream::Priority::kHigh),
      uploads_(stream_.get()),
      write_uploads_(write_stream_.get()),
      weights_(std::move(weights)),
      transformer_(config, weights_.get(), options.slots, stream_.get()),
      writer_(config, weights_.get(), write_stream_.get(), &write_uploads_),
      stride_((layout_.bytes() + 255) / 256 * 256),
      state_(static_cast<size_t>(options.slots) * stride_),
      asked_(static_cast<size_t>(options.slots) * (sizeof(cuda::Draw) + sizeof(int32_t)) +
             static_cast<size_t>(options.slots) * static_cast<size_t>(config.m_input_tokens + 1) * sizeof(Append)),
      drawn_(static_cast<size_t>(options.slots) * sizeof(int32_t)),
      ring_ids_(static_cast<size_t>(options.slots) * RingSize(config) * sizeof(int32_t)),
      last_ids_(static_cast<size_t>(options.slots) * sizeof(int32_t)),
      rings_{ring_ids_.as<int32_t>(), static_cast<int32_t>(RingSize(config)), last_ids_.as<int32_t>()},
      slots_(static_cast<size_t>(options.slots)),
      edits_(static_cast<int32_t>(config.vocab_size)) {
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, index_), "asking for the device's properties");
  numerics_id_ = absl::StrCat("cuda/sm_", properties.major, properties.minor, "/",
                              options.dtype == WindowDType::kFloat32    ? "float32"
                              : options.dtype == WindowDType::kBfloat16 ? "bfloat16+split"
                                                                        : "float16+split",
                              "/pieces", kChunks, "/3/deterministic");
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
  if (config.pool_scope == PoolScope::kTokens) {
    sequences_ = std::make_unique<SequencePass>(config, weights_.get(), write_stream_.get(), &write_uploads_);
  }
  for (Slot& slot : slots_) slot.tokens.reserve(static_cast<size_t>(config.m_input_tokens));
  for (QueuedStep& step : steps_) step.ids.Reserve(slots_.size() * sizeof(int32_t));
}

CudaSlotRunner::~CudaSlotRunner() {
  for (const Stream* stream : {&stream_, &write_stream_, &copy_stream_}) cudaStreamSynchronize(stream->get());
}

size_t CudaSlotRunner::RingSize(const StrideHybridConfig& config) {
  size_t size = 1;  // one more than the window has, so that a drawn id overwrites none of it
  while (size <= static_cast<size_t>(config.m_input_tokens)) size *= 2;
  return size;
}

int64_t CudaSlotRunner::PlanBytes(const StrideHybridConfig& config) {
  return static_cast<int64_t>(sizeof(cuda::Draw) + sizeof(int32_t)) +          // asked_
         (config.m_input_tokens + 1) * static_cast<int64_t>(sizeof(Append)) +  // asked_
         static_cast<int64_t>((RingSize(config) + 2) * sizeof(int32_t));       // ring_ids_, last_ids_, drawn_
}

int64_t CudaSlotRunner::slot_bytes() const {
  return static_cast<int64_t>(stride_) + transformer_.cache_bytes_per_slot() + transformer_.output_bytes_per_slot() +
         PlanBytes(config_);
}

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

void CudaSlotRunner::Know(std::span<const int32_t> slots) {
  if (std::any_of(slots.begin(), slots.end(), [&](int32_t slot) { return At(slot).unknown > 0; })) Settle();
}

void CudaSlotRunner::Reset(int32_t slot) {
  Begin();
  Slot& s = At(slot);
  AwaitWrites(s.written);
  s.position = 0;
  s.tokens.clear();
  s.BeginAnew();
  s.ring_valid = true;
  CheckCuda(cudaMemsetAsync(StateOf(slot), 0, stride_, stream_.get()), "clearing a slot");
  window_busy_ = true;
}

void CudaSlotRunner::Load(int32_t slot, std::span<const std::byte> state) {
  Begin();
  Slot& s = At(slot);
  CheckBytes(state.size());
  const int64_t position = layout_.position(state);
  if (position < 0) throw std::invalid_argument(absl::StrCat("state's position is ", position, "; allowed: >= 0"));
  const std::span<const int32_t> tokens = layout_.tokens(state);
  CheckIds(tokens);
  AwaitWrites(s.written);
  Transfer& transfer = FreeTransfer();
  std::memcpy(transfer.host.as<std::byte>(), state.data(), state.size());
  CheckCuda(cudaMemcpyAsync(StateOf(slot), transfer.host.as<std::byte>(), state.size(), cudaMemcpyHostToDevice,
                            stream_.get()),
            "loading a slot");
  transfer.done.Record(stream_);
  window_busy_ = true;
  s.position = position;
  const auto valid = static_cast<size_t>(layout_.tokens_valid(position));
  s.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(valid));
  s.BeginAnew();
  s.ring_valid = false;
}

void CudaSlotRunner::Save(int32_t slot, std::span<std::byte> state) { TakeTransfer(QueueSave(slot, state), true); }

void CudaSlotRunner::Copy(int32_t from, int32_t to) {
  Begin();
  Know({&from, 1});
  const Slot& source = At(from);
  Slot& target = At(to);
  if (from == to) return;
  AwaitWrites(std::max(source.written, target.written));
  CheckCuda(cudaMemcpyAsync(StateOf(to), StateOf(from), stride_, cudaMemcpyDeviceToDevice, stream_.get()),
            "copying a slot");
  window_busy_ = true;
  target.position = source.position;
  target.tokens = source.tokens;
  target.BeginAnew();  // the cache is rebuilt to the same bits
  target.ring_valid = false;
}

void CudaSlotRunner::AppendToTokens(Slot& slot, std::span<const int32_t> ids) {
  const auto m = static_cast<size_t>(config_.m_input_tokens);
  slot.position += static_cast<int64_t>(ids.size());
  if (ids.size() > m) ids = ids.last(m);
  const size_t kept = std::min(slot.tokens.size(), m - ids.size());
  slot.tokens.erase(slot.tokens.begin(), slot.tokens.end() - static_cast<std::ptrdiff_t>(kept));
  for (const int32_t id : ids) slot.tokens.push_back(id);
}

void CudaSlotRunner::BeginWrite(int32_t index, Ids ids) {
  const Slot& slot = At(index);
  const auto valid = static_cast<int32_t>(layout_.memory_valid(slot.position - 1));
  Write write = {.slot = index,
                 .memory_pooled = config_.pool_scope == PoolScope::kWindow ? valid : 0,
                 .memory_valid = valid,
                 .tokens = static_cast<int32_t>(slot.tokens.size()),
                 .ids_at = 0,
                 .first_id = 0,
                 .before = 0};
  if (ids == Ids::kOfRing) {
    write.ids_at = index * rings_.size;
    write.first_id = static_cast<int32_t>((slot.position - write.tokens) % rings_.size);
  } else {
    write.ids_at = static_cast<int32_t>(write_ids_.size());
    write_ids_.insert(write_ids_.end(), slot.tokens.begin(), slot.tokens.end());
  }
  writes_.push_back(write);
}

void CudaSlotRunner::WritesAfterWindow() {
  if (!window_busy_) return;
  window_asked_.Record(stream_);
  window_asked_.HoldBack(write_stream_);
  window_busy_ = false;
}

void CudaSlotRunner::AwaitWrites(int64_t batch) {
  if (batch <= awaited_batch_) return;
  // The stream runs them in order, so a later event does where the batch's own is in use again.
  batch = std::max(batch, write_batch_ - kWriteEvents + 1);
  batch_done_[static_cast<size_t>(batch % kWriteEvents)].HoldBack(stream_);
  awaited_batch_ = batch;
}

void CudaSlotRunner::EndBatch(int blocks) {
  narrow_writes_ = std::max(WritesDone(write_batch_) ? 0 : narrow_writes_, blocks);
  ++write_batch_;
  batch_done_[static_cast<size_t>(write_batch_ % kWriteEvents)].Record(write_stream_);
  if (blocks == 0) wide_batch_ = write_batch_;
}

void CudaSlotRunner::FinishWrites(Ids ids, int blocks) {
  if (writes_.empty()) return;
  WritesAfterWindow();
  if (ids == Ids::kOfRing) {
    const bool timed = Timed() && !timing_.writes_ended;
    if (timed) timing_.writes.Record(write_stream_);
    writer_.Run(writes_, rings_, memory_, blocks);
    if (timed) timing_.end_of_writes.Record(write_stream_);
    timing_.writes_ended |= timed;
  } else {
    writer_.Run(writes_, write_ids_, memory_);
  }
  EndBatch(blocks);
  for (const Write& write : writes_) {
    Slot& slot = At(write.slot);
    slot.Forget();
    slot.written = write_batch_;
  }
  if (observer_) Observe();
  writes_.clear();
  write_ids_.clear();
}

bool CudaSlotRunner::WritesDone(int64_t batch) const {
  if (batch <= awaited_batch_) return true;
  return batch_done_[static_cast<size_t>(std::max(batch, write_batch_ - kWriteEvents + 1) % kWriteEvents)].Done();
}

int CudaSlotRunner::SpareForWrites() const {
  constexpr size_t kLongPass = 2048;  // rows: writes are over long before, and blocks share the tiles as they come
  return pass_rows_ > kLongPass || WritesDone(write_batch_) ? 0 : narrow_writes_;
}

void CudaSlotRunner::Observe() {
  const auto w = static_cast<size_t>(config_.window()), d = static_cast<size_t>(config_.d_model);
  const auto ld = static_cast<size_t>(writer_.output_stride());
  std::vector<float> weights(writes_.size() * w), outputs(writes_.size() * ld);
  const auto fetch = [&](std::vector<float>& to, const float* from) {
    CheckCuda(cudaMemcpyAsync(to.data(), from, to.size() * sizeof(float), cudaMemcpyDeviceToHost, write_stream_.get()),
              "fetching a write");
  };
  fetch(weights, writer_.pool_weights());
  fetch(outputs, writer_.outputs());
  CheckCuda(cudaStreamSynchronize(write_stream_.get()), "running a write");
  for (size_t i = 0; i < writes_.size(); ++i) {
    observer_({.slot = writes_[i].slot,
               .position = At(writes_[i].slot).position,
               .pool_weights = std::span(weights).subspan(i * w, w),
               .ssm_output = std::span(outputs).subspan(i * ld, d)});
  }
}

// All strides at once, to the same bits. False, and nothing is done, where writes depend on each other or are observed,
// or no session has two of them.
bool CudaSlotRunner::IngestSequences(std::span<const Chunk> chunks) {
  if (sequences_ == nullptr || observer_) return false;
  const auto text_of = [&](const Chunk& chunk) {
    const Slot& slot = At(chunk.slot);
    return SequencePass::Text{.slot = chunk.slot, .position = slot.position, .before = slot.tokens, .ids = chunk.ids};
  };
  const auto has_many = [&](const Chunk& chunk) { return sequences_->Writes(text_of(chunk)) > 1; };
  if (std::none_of(chunks.begin(), chunks.end(), has_many)) return false;
  WritesAfterWindow();
  for (const Chunk& chunk : chunks) {
    Slot& slot = At(chunk.slot);
    const SequencePass::Text text = text_of(chunk);
    sequences_->Add(text, memory_);
    if (sequences_->Writes(text) > 0) {
      slot.Forget();
      slot.written = write_batch_ + 1;
    }
    AppendToTokens(slot, chunk.ids);
    slot.ring_valid = slot.owes_draw = false;
  }
  sequences_->Finish(memory_);
  EndBatch(0);
  return true;
}

void CudaSlotRunner::Ingest(std::span<const Chunk> chunks) {
  for (const Chunk& chunk : chunks) {
    At(chunk.slot);
    CheckIds(chunk.ids);
  }
  Begin();
  for (const Chunk& chunk : chunks) Know({&chunk.slot, 1});
  if (IngestSequences(chunks)) return;
  std::vector<Chunk> left(chunks.begin(), chunks.end());
  // Rounds of at most one write a session.
  while (!left.empty()) {
    for (Chunk& chunk : left) {
      Slot& slot = At(chunk.slot);
      const int64_t to_boundary = config_.stride - slot.position % config_.stride;
      const auto take = static_cast<size_t>(std::min<int64_t>(to_boundary, static_cast<int64_t>(chunk.ids.size())));
      AppendToTokens(slot, chunk.ids.first(take));
      slot.ring_valid = slot.owes_draw = false;
      chunk.ids = chunk.ids.subspan(take);
      if (take == 0 || static_cast<int64_t>(take) < to_boundary) continue;
      if (writes_.size() == WritePass::kMaxWrites) FinishWrites(Ids::kKnown, 0);
      BeginWrite(chunk.slot, Ids::kKnown);
    }
    FinishWrites(Ids::kKnown, 0);
    std::erase_if(left, [](const Chunk& chunk) { return chunk.ids.empty(); });
  }
}

int64_t CudaSlotRunner::TokensInWindow(int64_t position) const {
  if (config_.window_policy == WindowPolicy::kSlide) return std::min(position, config_.m_input_tokens);
  const int64_t last_write = position - position % config_.stride;
  return std::min(last_write, config_.m_input_tokens - config_.stride) + position - last_write;
}

void CudaSlotRunner::AddRows(int32_t index, Ids ids) {
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
    const int64_t at = slot.position - count + j;
    rows_.push_back({index, n + j, memory_valid,
                     ids == Ids::kKnown ? window[j] : IdSource(static_cast<int32_t>(at % rings_.size))});
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
  // Two kernels that wait for all their blocks must both fit, so none runs beside one that takes the whole device, even
  // where narrower writes were queued after that.
  AwaitWrites(wide_batch_);
  pass_rows_ = rows_.size();
  if (Timed() && !timing_.window_begun) {
    timing_.window.Record(stream_);
    timing_.window_begun = true;
  }
  transformer_.Run(rows_, groups_, wanted_, to_slots_, KeepsTokens(), memory_, rings_, SpareForWrites());
  window_busy_ = true;
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
    AwaitWrites(slot.written);
    AddRows(index, Ids::kKnown);
  }
  RunRows();
}

void CudaSlotRunner::Head(std::span<const int32_t> slots, float* logits) {
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  uploads_.Copy(asked_.data(), slots.data(), slots.size_bytes());
  for (size_t first = 0; first < slots.size(); first += TransformerPass::kMaxHeadRows) {
    const size_t count = std::min<size_t>(slots.size() - first, TransformerPass::kMaxHeadRows);
    const float* from = transformer_.Head(asked_.as<int32_t>() + first, static_cast<int>(count));
    CheckCuda(cudaMemcpy2DAsync(logits + first * vocab, vocab * sizeof(float), from,
                                static_cast<size_t>(transformer_.logits_stride()) * sizeof(float),
                                vocab * sizeof(float), count, cudaMemcpyDeviceToHost, stream_.get()),
              "fetching logits");
    window_busy_ = true;
    Wait();
  }
}

void CudaSlotRunner::Absorb(std::span<const int32_t> slots, std::span<const int32_t> ids) {
  if (slots.size() != ids.size()) {
    throw std::invalid_argument(absl::StrCat("Step got ", slots.size(), " slots and ", ids.size(), " ids"));
  }
  for (const int32_t slot : slots) At(slot);
  CheckIds(ids);
  Know(slots);
  for (size_t i = 0; i < slots.size(); ++i) {
    Slot& slot = At(slots[i]);
    AppendToTokens(slot, ids.subspan(i, 1));
    slot.ring_valid = slot.owes_draw = false;
    if (slot.position % config_.stride != 0) continue;
    if (writes_.size() == WritePass::kMaxWrites) FinishWrites(Ids::kKnown, 0);
    BeginWrite(slots[i], Ids::kKnown);
  }
  FinishWrites(Ids::kKnown, 0);
  Refresh(slots);
}

void CudaSlotRunner::Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) {
  Begin();
  Absorb(slots, ids);
  Head(slots, logits);
}

void CudaSlotRunner::Logits(std::span<const int32_t> slots, float* logits) {
  Begin();
  Know(slots);
  Refresh(slots);
  Head(slots, logits);
}

}  // namespace cuda
}  // namespace smt
