#include "model/hybrid_state.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace smt {
namespace {

// Appends a tensor's float32 values to `to`, which moves on.
void Pack(const at::Tensor& tensor, float*& to) {
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  if (values.numel() > 0) std::memcpy(to, values.const_data_ptr<float>(), values.numel() * sizeof(float));
  to += values.numel();
}

at::Tensor Unpack(const float*& from, at::IntArrayRef shape) {
  const at::Tensor values = at::empty(shape, at::kFloat);
  if (values.numel() > 0) std::memcpy(values.data_ptr<float>(), from, values.numel() * sizeof(float));
  from += values.numel();
  return values;
}

}  // namespace

void PackState(const HybridState& state, int64_t row, const StateLayout& layout, std::span<std::byte> bytes) {
  std::memset(bytes.data(), 0, layout.bytes());
  layout.position(bytes) = state.position;
  const at::Tensor ids = state.tokens.select(0, row).to(at::kCPU, at::kInt).contiguous();
  std::copy_n(ids.const_data_ptr<int32_t>(), ids.numel(), layout.tokens(bytes).begin());
  float* memory = layout.memory(bytes).data();
  Pack(state.memory.select(0, row), memory);
  float* conv = layout.conv(bytes).data();
  for (const at::Tensor& layer : state.ssm.conv) Pack(layer.select(0, row), conv);
  float* ssm = layout.state(bytes).data();
  for (const at::Tensor& layer : state.ssm.state) Pack(layer.select(0, row), ssm);
}

HybridState UnpackState(const StrideHybridConfig& config, const StateLayout& layout, std::span<const std::byte> bytes) {
  HybridState state;
  state.position = layout.position(bytes);
  if (state.position < 0)
    throw std::invalid_argument("state: position is " + std::to_string(state.position) + ", allowed >= 0");
  const int64_t count = layout.tokens_valid(state.position);
  state.tokens = at::empty({1, count}, at::kLong);
  const std::span<const int32_t> ids = layout.tokens(bytes);
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= config.vocab_size) {
      throw std::invalid_argument("state: token " + std::to_string(i) + " is " + std::to_string(ids[i]) +
                                  ", allowed 0 to " + std::to_string(config.vocab_size - 1));
    }
    state.tokens.data_ptr<int64_t>()[i] = ids[i];
  }
  const float* memory = layout.memory(bytes).data();
  state.memory = Unpack(memory, {1, layout.memory_valid(state.position), config.d_model});
  const float* conv = layout.conv(bytes).data();
  const float* ssm = layout.state(bytes).data();
  for (int64_t i = 0; i < config.ssm.n_layer; ++i) {
    if (config.ssm.kind == SsmKind::kMamba) {
      state.ssm.conv.push_back(Unpack(conv, {1, config.d_inner(), config.ssm.d_conv}));
      state.ssm.state.push_back(Unpack(ssm, {1, config.d_inner(), config.ssm.d_state}));
    } else {
      state.ssm.state.push_back(Unpack(ssm, {1, config.d_model}));
    }
  }
  return state;
}

HybridState Detach(const HybridState& state) {
  HybridState detached = state;
  detached.memory = state.memory.detach();
  for (at::Tensor& layer : detached.ssm.conv) layer = layer.detach();
  for (at::Tensor& layer : detached.ssm.state) layer = layer.detach();
  return detached;
}

}  // namespace smt
