// Ids into the sessions' windows, and the writes that they bring about, a batch at a time on their own stream.
#include <algorithm>
#include <vector>

#include "model/cuda/cuda_runner.h"

namespace smt::cuda {

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

void CudaSlotRunner::EndBatch(const WriteMode& mode) {
  spare_ = std::max(WritesDone(write_batch_) ? 0 : spare_, mode.spare);
  ++write_batch_;
  batch_done_[static_cast<size_t>(write_batch_ % kWriteEvents)].Record(write_stream_);
  if (mode.blocks == 0) wide_batch_ = write_batch_;
}

void CudaSlotRunner::FinishWrites(Ids ids, const WriteMode& mode) {
  if (writes_.empty()) return;
  WritesAfterWindow();
  if (ids == Ids::kOfRing) {
    const bool timed = Timed() && !timing_.writes_ended;
    if (timed) timing_.writes.Record(write_stream_);
    writer_.Run(writes_, rings_, memory_, mode.blocks);
    if (timed) timing_.end_of_writes.Record(write_stream_);
    timing_.writes_ended |= timed;
  } else {
    writer_.Run(writes_, write_ids_, memory_);
  }
  EndBatch(mode);
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
  return pass_rows_ > kLongPass || WritesDone(write_batch_) ? 0 : spare_;
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
  EndBatch({});
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
      if (writes_.size() == WritePass::kMaxWrites) FinishWrites(Ids::kKnown, {});
      BeginWrite(chunk.slot, Ids::kKnown);
    }
    FinishWrites(Ids::kKnown, {});
    std::erase_if(left, [](const Chunk& chunk) { return chunk.ids.empty(); });
  }
}

}  // namespace smt::cuda
