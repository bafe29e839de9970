// Writes safetensors files.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/io/safetensors_dtype.h"
#include "model/io/safetensors_header.h"

namespace smt {

// Collects tensors, then writes them. The bytes of the file are a function of what was added, not of the order: widest
// dtype first, then by name, as the format's own library does, so that all data is aligned; the data starts at a
// multiple of 8; metadata is sorted by key.
//
// Tensors are NOT copied: their memory must live until writing is done. Not thread-safe.
//
// Errors are INVALID_ARGUMENT naming the tensor: a name used twice or reserved, text that is not UTF-8, bytes that do
// not match dtype and shape, a header past 100 MB.
class SafetensorsWriter {
 public:
  absl::Status SetMetadata(std::string_view key, std::string_view value);  // replaces

  absl::Status Add(std::string_view name, SafetensorsDType dtype, const std::vector<int64_t>& shape,
                   std::string_view bytes);
  absl::Status AddFloat32(std::string_view name, const std::vector<int64_t>& shape, absl::Span<const float> values);
  absl::Status AddInt32(std::string_view name, const std::vector<int64_t>& shape, absl::Span<const int32_t> values);
  absl::Status AddInt64(std::string_view name, const std::vector<int64_t>& shape, absl::Span<const int64_t> values);

  // For data that is made when its turn comes to be written, so that only one tensor's bytes exist at a time. Called
  // once for each time the file is written; its error is passed on.
  using Producer = std::function<absl::StatusOr<std::string>()>;
  absl::Status AddProduced(std::string_view name, SafetensorsDType dtype, const std::vector<int64_t>& shape,
                           Producer produce);

  // Atomic and durable (see AtomicFile): `path` is the old file, or absent, until it is the whole new one.
  absl::Status WriteFile(const std::string& path) const;
  absl::StatusOr<std::string> ToString() const;

 private:
  struct Entry {
    TensorInfo info;  // offsets unset
    std::string_view bytes;
    Producer produce;  // if set, instead of `bytes`
  };
  using Sink = std::function<absl::Status(std::string_view)>;

  absl::Status AddEntry(std::string_view name, SafetensorsDType dtype, const std::vector<int64_t>& shape,
                        std::string_view bytes, Producer produce);
  absl::Status WriteTo(const Sink& sink) const;

  std::map<std::string, std::string> metadata_;
  std::map<std::string, Entry, std::less<>> entries_;  // by name
};

// `values` as bytes of F32, F16 or BF16 (rounded to nearest even); INVALID_ARGUMENT for other dtypes.
absl::StatusOr<std::string> EncodeFloats(SafetensorsDType dtype, absl::Span<const float> values);

}  // namespace smt
