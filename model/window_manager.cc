#include "model/window_manager.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <stdexcept>
#include <string>

namespace smt {

BatchedWindowManager::BatchedWindowManager(const StrideHybridConfig& config, const SSMMemoryImpl& ssm, int32_t slots,
                                           at::Device device)
    : config_(config), layout_(config), slots_(slots), device_(device), sessions_(slots + 1) {
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat).device(device);
  for (Session& session : sessions_) session.tokens.assign(config.m_input_tokens, 0);
  memory_ = at::zeros({(slots + 1) * config.n_ssm_outputs, config.d_model}, options);
  ssm_ = ssm.InitialState(slots + 1, options);
}

at::Tensor BatchedWindowManager::Rows(std::span<const int32_t> slots) const {
  const at::Tensor rows = at::empty({static_cast<int64_t>(slots.size())}, at::kLong);
  std::copy(slots.begin(), slots.end(), rows.data_ptr<int64_t>());
  return rows.to(device_);
}

void BatchedWindowManager::Reset(int32_t slot) {
  at::NoGradGuard no_grad;
  Session& session = sessions_[slot];
  session.position = session.writes = 0;
  memory_.narrow(0, slot * config_.n_ssm_outputs, config_.n_ssm_outputs).zero_();
  for (at::Tensor& layer : ssm_.conv) layer.select(0, slot).zero_();
  for (at::Tensor& layer : ssm_.state) layer.select(0, slot).zero_();
}

void BatchedWindowManager::Load(int32_t slot, std::span<const std::byte> bytes) {
  at::NoGradGuard no_grad;
  if (bytes.size() != layout_.bytes()) {
    throw std::invalid_argument("state: " + std::to_string(bytes.size()) + " bytes, allowed " +
                                std::to_string(layout_.bytes()));
  }
  const HybridState state = UnpackState(config_, layout_, bytes);
  Reset(slot);
  Session& session = sessions_[slot];
  session.position = state.position;
  const TokenRange seen = LastTokens(config_, state.position);
  for (int64_t i = 0; i < seen.count; ++i) {
    session.tokens[(seen.first - 1 + i) % config_.m_input_tokens] = layout_.tokens(bytes)[i];
  }
  session.writes = state.position / config_.stride;
  const int64_t valid = memory_valid(session), n = config_.n_ssm_outputs;
  for (int64_t i = 0; i < valid; ++i) {
    memory_.select(0, slot * n + (session.writes - valid + i) % n).copy_(state.memory.select(1, i).select(0, 0));
  }
  for (size_t i = 0; i < ssm_.conv.size(); ++i) ssm_.conv[i].select(0, slot).copy_(state.ssm.conv[i].select(0, 0));
  for (size_t i = 0; i < ssm_.state.size(); ++i) ssm_.state[i].select(0, slot).copy_(state.ssm.state[i].select(0, 0));
}

void BatchedWindowManager::Save(int32_t slot, std::span<std::byte> bytes) const {
  const Session& session = sessions_[slot];
  const TokenRange seen = LastTokens(config_, session.position);
  HybridState state;
  state.position = session.position;
  state.tokens = at::empty({1, seen.count}, at::kLong);
  for (int64_t i = 0; i < seen.count; ++i) state.tokens.data_ptr<int64_t>()[i] = TokenAt(slot, seen.first + i);
  const std::array<int32_t, 1> slots = {slot};
  const std::array<TokenRange, 1> none = {};
  state.memory = Gather(slots, none, 1).memory.narrow(1, 0, memory_valid(session));
  state.ssm = GatherSsm(slots);
  PackState(state, 0, layout_, bytes);
}

void BatchedWindowManager::Copy(int32_t from, int32_t to) {
  at::NoGradGuard no_grad;
  if (from == to) return;
  const int64_t n = config_.n_ssm_outputs;
  sessions_[to] = sessions_[from];
  memory_.narrow(0, to * n, n).copy_(memory_.narrow(0, from * n, n));
  for (at::Tensor& layer : ssm_.conv) layer.select(0, to).copy_(layer.select(0, from));
  for (at::Tensor& layer : ssm_.state) layer.select(0, to).copy_(layer.select(0, from));
}

void BatchedWindowManager::Append(int32_t slot, int32_t id) {
  if (id < 0 || id >= config_.vocab_size) {
    throw std::invalid_argument("token id is " + std::to_string(id) + ", allowed 0 to " +
                                std::to_string(config_.vocab_size - 1));
  }
  Session& session = sessions_[slot];
  session.tokens[session.position % config_.m_input_tokens] = id;
  ++session.position;
}

int32_t BatchedWindowManager::TokenAt(int32_t slot, int64_t position) const {
  return sessions_[slot].tokens[(position - 1) % config_.m_input_tokens];
}

WindowBatch BatchedWindowManager::Gather(std::span<const int32_t> slots, std::span<const TokenRange> ranges,
                                         int64_t width) const {
  const int64_t batch = slots.size(), n = config_.n_ssm_outputs;
  // One host buffer, one copy to the device: ring rows [B, n] | ids [B, width] | memory count [B] | token count [B].
  const at::Tensor host = at::zeros({batch * (n + width + 2)}, at::kLong);
  int64_t* rows = host.data_ptr<int64_t>();
  int64_t *ids = rows + batch * n, *memory_counts = ids + batch * width, *token_counts = memory_counts + batch;
  for (int64_t b = 0; b < batch; ++b) {
    const Session& session = sessions_[slots[b]];
    const int64_t valid = memory_valid(session);
    for (int64_t i = 0; i < n; ++i) rows[b * n + i] = slots[b] * n + (session.writes - valid + i) % n;
    for (int64_t i = 0; i < ranges[b].count; ++i) ids[b * width + i] = TokenAt(slots[b], ranges[b].first + i);
    memory_counts[b] = valid;
    token_counts[b] = ranges[b].count;
  }
  const at::Tensor device = host.to(device_);
  const auto part = [&](int64_t at, int64_t columns) {
    return device.narrow(0, at, batch * columns).view({batch, columns});
  };
  const at::Tensor column = at::arange(n + width, device.options()).unsqueeze(0);  // [1, n + width]
  const at::Tensor memory_count = part(batch * (n + width), 1), token_count = part(batch * (n + width + 1), 1);
  WindowBatch window;
  window.memory = at::index_select(memory_, 0, device.narrow(0, 0, batch * n)).view({batch, n, config_.d_model});
  window.ids = part(batch * n, width);
  window.mask = column.lt(memory_count).logical_or(column.ge(n).logical_and(column.lt(token_count + n)));
  window.last = (token_count + (n - 1)).squeeze(1);
  return window;
}

SsmState BatchedWindowManager::GatherSsm(std::span<const int32_t> slots) const {
  const at::Tensor rows = Rows(slots);
  SsmState state;
  for (const at::Tensor& layer : ssm_.conv) state.conv.push_back(at::index_select(layer, 0, rows));
  for (const at::Tensor& layer : ssm_.state) state.state.push_back(at::index_select(layer, 0, rows));
  return state;
}

void BatchedWindowManager::Push(std::span<const int32_t> slots, const SsmResult& written) {
  at::NoGradGuard no_grad;
  const at::Tensor rows = Rows(slots);
  for (size_t i = 0; i < ssm_.conv.size(); ++i) ssm_.conv[i].index_copy_(0, rows, written.state.conv[i]);
  for (size_t i = 0; i < ssm_.state.size(); ++i) ssm_.state[i].index_copy_(0, rows, written.state.state[i]);
  std::vector<int32_t> ring_rows;
  for (const int32_t slot : slots) {
    Session& session = sessions_[slot];
    ring_rows.push_back(static_cast<int32_t>(slot * config_.n_ssm_outputs + session.writes++ % config_.n_ssm_outputs));
  }
  memory_.index_copy_(0, Rows(ring_rows), written.output);
}

void WindowManager::ForkFrom(const WindowManager& other) {
  std::vector<std::byte> bytes(other.layout().bytes());
  other.Save(bytes);
  Load(bytes);
}

WindowBatch WindowManager::WriteWindow() const {
  const std::array<TokenRange, 1> range = {LastTokens(slots_.config(), position())};
  return slots_.Gather(kSlot, range, range[0].count);
}

WindowBatch WindowManager::LogitsWindow(WindowPolicy policy) const {
  const std::array<TokenRange, 1> range = {LogitsTokens(slots_.config(), policy, position())};
  return slots_.Gather(kSlot, range, range[0].count);
}

}  // namespace smt
