#include "model/ops/packed_linear.h"

#include <algorithm>
#include <bit>

namespace smt::ops {

uint16_t ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float FromBf16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

PackedLinear::PackedLinear(const float* weights, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride,
                           const float* bias, bool round_to_bf16)
    : k_(k), n_(n) {
  const auto weight = [&](int64_t i, int64_t j) { return weights[i * k_stride + j * n_stride]; };
  bool exact = true;
  for (int64_t i = 0; i < k * n && exact && !round_to_bf16; ++i) {
    exact = (std::bit_cast<uint32_t>(weights[i]) & 0xffff) == 0;  // both layouts are dense
  }
  const int64_t panels = (n + kPanel - 1) / kPanel;
  const size_t size = static_cast<size_t>(panels * k * kPanel);
  exact ? bf16_.resize(size) : void(f32_.resize(size));
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t columns = std::min(kPanel, n - p * kPanel);
    for (int64_t i = 0; i < k; ++i) {
      const size_t at = static_cast<size_t>((p * k + i) * kPanel);
      for (int64_t c = 0; c < columns; ++c) {
        const float w = weight(i, p * kPanel + c);
        exact ? void(bf16_[at + c] = ToBf16(w)) : void(f32_[at + c] = w);
      }
    }
  }
  if (bias != nullptr) bias_.assign(bias, bias + n);
}

void PackedLinear::Forward(const Kernels& kernels, ThreadPool& pool, const float* x, int64_t x_stride, int64_t m,
                           float* y, int64_t y_stride, Activation activation, const float* residual,
                           int64_t residual_stride) const {
  // Pieces: up to 48 rows (whole tiles of 12) by 4 panels; few rows leave the columns as the only thing to share out.
  constexpr int64_t kRows = 48, kPanels = 4;
  const int64_t panels = (n_ + kPanel - 1) / kPanel;
  const int64_t groups = (panels + kPanels - 1) / kPanels;
  const int64_t blocks = (m + kRows - 1) / kRows;
  const void* weights = bf16_.empty() ? static_cast<const void*>(f32_.data()) : bf16_.data();
  pool.For(groups * blocks, [&](int64_t piece) {
    const int64_t row = piece / groups * kRows;
    const int64_t panel = piece % groups * kPanels;
    const LinearArgs args = {
        .x = x + row * x_stride,
        .x_stride = x_stride,
        .panels = weights,
        .bf16 = !bf16_.empty(),
        .m = std::min(kRows, m - row),
        .k = k_,
        .n = n_,
        .bias = bias_.empty() ? nullptr : bias_.data(),
        .activation = activation,
        .residual = residual == nullptr ? nullptr : residual + row * residual_stride,
        .residual_stride = residual_stride,
        .y = y + row * y_stride,
        .y_stride = y_stride,
    };
    kernels.linear(args, panel, std::min(panels, panel + kPanels));
  });
}

}  // namespace smt::ops
