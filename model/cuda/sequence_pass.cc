#include "model/cuda/sequence_pass.h"

#include <algorithm>
#include <cstring>

namespace smt::cuda {
namespace {

constexpr int kMaxGraphRows = 256;  // above, the device is busy for longer than launching takes
constexpr Recurrence kManySteps = {SequenceConv, SequenceScan, nullptr, SequenceSimpleSsm, PushSequences};

size_t PlanBytes(int64_t m) {
  return SequencePass::kMaxRows * (sizeof(Write) + sizeof(Sequence) + static_cast<size_t>(m) * sizeof(int32_t));
}

}  // namespace

SequencePass::SequencePass(const StrideHybridConfig& config, const CudaWeights* weights, cudaStream_t stream,
                           PinnedUploads* uploads)
    : m_(config.m_input_tokens),
      n_(config.n_ssm_outputs),
      s_(config.stride),
      uploads_(*uploads),
      layers_(config, weights, kMaxRows, stream),
      plan_(PlanBytes(m_)),
      graphs_(stream) {}

int64_t SequencePass::WorkBytes(const StrideHybridConfig& config) {
  return kMaxRows * MemoryLayers::BytesPerRow(config) + static_cast<int64_t>(PlanBytes(config.m_input_tokens));
}

void SequencePass::Add(const Text& text, const SlotMemory& slots) {
  int64_t next = text.position / s_ + 1;  // writes since the session began, this one included
  for (int64_t left = Writes(text); left > 0;) {
    const int64_t count = std::min(left, kMaxRows - static_cast<int64_t>(writes_.size()));
    AddRows(text, next, count);
    next += count;
    left -= count;
    if (static_cast<int64_t>(writes_.size()) == kMaxRows) Finish(slots);
  }
}

void SequencePass::AddRows(const Text& text, int64_t first_write, int64_t count) {
  const auto memory_before = [&](int64_t write) { return static_cast<int32_t>(std::min(write - 1, n_)); };
  sequences_.push_back({.slot = text.slot,
                        .first_row = static_cast<int32_t>(writes_.size()),
                        .rows = static_cast<int32_t>(count),
                        .memory_valid = memory_before(first_write)});
  const int64_t first_position = first_write * s_, last_position = (first_write + count - 1) * s_;
  const int64_t oldest = first_position - std::min(first_position, m_);
  const auto ids_at = static_cast<int64_t>(ids_.size());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = first_position + i * s_, tokens = std::min(position, m_);
    writes_.push_back({.slot = text.slot,
                       .memory_pooled = 0,
                       .memory_valid = memory_before(first_write + i),
                       .tokens = static_cast<int32_t>(tokens),
                       .ids_at = static_cast<int32_t>(ids_at + position - tokens - oldest),
                       .first_id = 0,
                       .before = static_cast<int32_t>(i)});
  }
  AddIds(text, oldest, last_position);
}

// Those at positions from + 1 to `to`.
void SequencePass::AddIds(const Text& text, int64_t from, int64_t to) {
  const auto add = [&](std::span<const int32_t> ids, int64_t first) {  // ids[0] is at position first + 1
    const int64_t begin = std::max(from, first), end = std::min(to, first + static_cast<int64_t>(ids.size()));
    if (begin < end) ids_.insert(ids_.end(), ids.begin() + (begin - first), ids.begin() + (end - first));
  };
  add(text.before, text.position - static_cast<int64_t>(text.before.size()));
  add(text.ids, text.position);
}

void SequencePass::Finish(const SlotMemory& slots) {
  if (writes_.empty()) return;
  // One copy. Where the parts lie depends on the numbers of writes and sequences alone, so a graph finds them again.
  const size_t sequences_at = writes_.size() * sizeof(Write);
  const size_t ids_at = sequences_at + sequences_.size() * sizeof(Sequence);
  const size_t bytes = ids_at + ids_.size() * sizeof(int32_t);
  auto* plan = static_cast<std::byte*>(uploads_.Reserve(bytes));
  std::memcpy(plan, writes_.data(), sequences_at);
  std::memcpy(plan + sequences_at, sequences_.data(), ids_at - sequences_at);
  std::memcpy(plan + ids_at, ids_.data(), bytes - ids_at);
  uploads_.Upload(plan_.data(), bytes);
  const auto* device = plan_.as<std::byte>();
  Pooling pooling = layers_.Pool(plan_.as<Write>(), reinterpret_cast<const int32_t*>(device + ids_at),
                                 static_cast<int>(writes_.size()), slots);
  pooling.sequences = reinterpret_cast<const Sequence*>(device + sequences_at);
  pooling.sequence_count = static_cast<int>(sequences_.size());
  const auto queue = [&] { layers_.Run(pooling, nullptr, kManySteps); };
  if (pooling.count > kMaxGraphRows) {
    queue();
  } else {
    graphs_.Run(static_cast<uint64_t>(pooling.count) * (kMaxRows + 1) + static_cast<uint64_t>(pooling.sequence_count),
                queue);
  }
  writes_.clear();
  sequences_.clear();
  ids_.clear();
}

}  // namespace smt::cuda
