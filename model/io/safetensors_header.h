// The header of a safetensors file:
//   bytes 0..7    uint64, little-endian: N, the header's length, at most 100,000,000
//   bytes 8..8+N  JSON: {"__metadata__": {"key": "value", …}, "name": {"dtype": "F32", "shape": [2, 3],
//                 "data_offsets": [begin, end]}, …}, starting with '{', perhaps padded with spaces
//   the rest      the tensors' data, row-major, little-endian; offsets count from its start; no gaps, no overlaps
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/io/safetensors_dtype.h"

namespace smt {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes, as upstream

struct TensorInfo {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::kF32;
  std::vector<int64_t> shape;  // each >= 0, at most 64 dimensions; empty for a scalar
  int64_t elements = 0;        // product of `shape`
  uint64_t begin = 0;          // [begin, end): bytes from the start of the data
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // offset in the file of the tensors' data: 8 + N
};

// Reads and checks everything: the result's tensors tile the file from `data_begin` to its end, and every size fits
// its dtype and shape, so readers need no checks of their own. `file` is the whole file, and may be hostile.
// DATA_LOSS where the file is shorter or longer than it says, INVALID_ARGUMENT otherwise; both name the tensor and
// field, the value and what is allowed.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view file);

// A name as it is shown in messages: quoted, unprintable bytes escaped, cut to 64 bytes.
std::string QuoteForMessage(std::string_view name);

// [2, 3]
std::string ShapeToString(const std::vector<int64_t>& shape);

// The product of `shape`, and of that with `bits` an element the size in bytes. INVALID_ARGUMENT, beginning with
// `what`, for a negative dimension, a product of the nonzero dimensions past 2^63 - 1 bits, more than 64 dimensions, or
// packed elements that do not fill whole bytes.
struct TensorSize {
  int64_t elements = 0;
  uint64_t bytes = 0;
};
absl::StatusOr<TensorSize> CheckedTensorSize(std::string_view what, SafetensorsDType dtype,
                                             const std::vector<int64_t>& shape);

}  // namespace smt
