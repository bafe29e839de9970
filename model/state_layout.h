// The fixed-size state of one session as flat bytes: what a slot saves and loads, and what a snapshot holds.
//
// Little-endian, every section 64-byte aligned so that it can be copied to a device as it is:
//
//   position   int64               t, tokens absorbed
//   tokens     int32 [m]           ids of the last min(t, m) tokens, oldest first; the rest is 0
//   memory     float32 [n, D]      the last min(t / s, n) memory vectors, oldest first; the rest is 0
//   conv       float32 [L, d_inner, d_conv]    SSM layer i's last convolution inputs, oldest first, newest included
//   state      float32 [L, d_inner, d_state]   SSM layer i's state
//
// The simple SSM has no convolution (conv is empty) and a state of [L, D].
// Counts follow from t, so equal states are equal bytes. Derived state (hop's keys and values) is never part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "model/config.h"

namespace smt {

class StateLayout {
 public:
  explicit StateLayout(const StrideHybridConfig& config);

  size_t bytes() const { return bytes_; }
  int64_t tokens_valid(int64_t position) const { return position < m_ ? position : m_; }
  int64_t memory_valid(int64_t position) const { return position / s_ < n_ ? position / s_ : n_; }

  int64_t conv_numel() const { return conv_numel_; }    // all layers
  int64_t state_numel() const { return state_numel_; }  // all layers

  // Views into a buffer of bytes() bytes, 8-byte aligned at least.
  int64_t& position(std::span<std::byte> b) const { return *reinterpret_cast<int64_t*>(b.data()); }
  int64_t position(std::span<const std::byte> b) const { return *reinterpret_cast<const int64_t*>(b.data()); }
  std::span<int32_t> tokens(std::span<std::byte> b) const { return View<int32_t>(b, tokens_at_, m_); }
  std::span<const int32_t> tokens(std::span<const std::byte> b) const { return View<const int32_t>(b, tokens_at_, m_); }
  std::span<float> memory(std::span<std::byte> b) const { return View<float>(b, memory_at_, n_ * d_); }
  std::span<const float> memory(std::span<const std::byte> b) const {
    return View<const float>(b, memory_at_, n_ * d_);
  }
  std::span<float> conv(std::span<std::byte> b) const { return View<float>(b, conv_at_, conv_numel_); }
  std::span<const float> conv(std::span<const std::byte> b) const {
    return View<const float>(b, conv_at_, conv_numel_);
  }
  std::span<float> state(std::span<std::byte> b) const { return View<float>(b, state_at_, state_numel_); }
  std::span<const float> state(std::span<const std::byte> b) const {
    return View<const float>(b, state_at_, state_numel_);
  }

 private:
  template <typename T, typename B>
  static std::span<T> View(std::span<B> b, size_t at, int64_t count) {
    return {reinterpret_cast<T*>(b.data() + at), static_cast<size_t>(count)};
  }
  int64_t n_, m_, s_, d_;
  int64_t conv_numel_, state_numel_;
  size_t tokens_at_, memory_at_, conv_at_, state_at_, bytes_;
};

}  // namespace smt
