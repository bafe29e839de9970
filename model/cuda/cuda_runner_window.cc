// The window's rows: which of them the transformer has to compute, and the logits of the sessions' last ones for
// callers that wait for them.
#include <algorithm>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "model/cuda/cuda_runner.h"

namespace smt::cuda {

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
    if (writes_.size() == WritePass::kMaxWrites) FinishWrites(Ids::kKnown, {});
    BeginWrite(slots[i], Ids::kKnown);
  }
  FinishWrites(Ids::kKnown, {});
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

}  // namespace smt::cuda
