// Token embeddings, kept as bfloat16 where that is exact.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "model/ops/kernels.h"
#include "model/ops/packed_linear.h"

namespace smt {

class EmbeddingTable {
 public:
  EmbeddingTable(const std::vector<float>& rows, int64_t d) : d_(d) {
    bool exact = true;
    for (const float x : rows) exact = exact && (std::bit_cast<uint32_t>(x) & 0xffff) == 0;
    if (!exact) {
      f32_ = rows;
      return;
    }
    bf16_.reserve(rows.size());
    for (const float x : rows) bf16_.push_back(ops::ToBf16(x));
  }

  // out: [D] float32.
  void Row(const ops::Kernels& kernels, int64_t id, float* out) const {
    if (!bf16_.empty()) {
      kernels.widen(bf16_.data() + id * d_, d_, out);
    } else {
      std::memcpy(out, f32_.data() + id * d_, static_cast<size_t>(d_) * sizeof(float));
    }
  }

  // Rounds a row to bfloat16 values in place.
  static void Round(int64_t d, float* row) {
    for (int64_t i = 0; i < d; ++i) row[i] = ops::FromBf16(ops::ToBf16(row[i]));
  }

 private:
  int64_t d_;
  std::vector<uint16_t> bf16_;
  std::vector<float> f32_;
};

}  // namespace smt
