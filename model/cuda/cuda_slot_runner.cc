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

}  // namespace cuda
}  // namespace smt
