// Reads safetensors files, from a memory map or from memory.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/io/safetensors_dtype.h"
#include "model/io/safetensors_header.h"

namespace smt {

// Opening checks the whole header (see safetensors_header.h); the data is not touched until it is read. Copies are
// cheap and share the file. Const use is thread-safe.
//
// Errors begin with the path (or the name given): DATA_LOSS where the file is shorter or longer than it says,
// INVALID_ARGUMENT where it is malformed or a tensor's dtype does not suit the call, NOT_FOUND for a missing file or
// tensor.
class SafetensorsReader {
 public:
  // Memory-maps the file.
  static absl::StatusOr<SafetensorsReader> Open(const std::string& path);
  // Of bytes that outlive the reader and its copies; `name` is for messages.
  static absl::StatusOr<SafetensorsReader> FromBytes(std::string_view bytes, std::string_view name = "safetensors");
  // Keeps the bytes itself.
  static absl::StatusOr<SafetensorsReader> FromString(std::string bytes, std::string_view name = "safetensors");

  // In the order of their data in the file.
  const std::vector<TensorInfo>& tensors() const { return contents_->header.tensors; }
  const std::map<std::string, std::string>& metadata() const { return contents_->header.metadata; }
  const std::string& source() const { return contents_->source; }  // the path or the name given

  // nullptr if there is none; valid while a copy of the reader lives.
  const TensorInfo* Find(std::string_view name) const;
  // NOT_FOUND if there is none.
  absl::StatusOr<const TensorInfo*> Get(std::string_view name) const;
  // Get, and INVALID_ARGUMENT naming both shapes unless the tensor has this one.
  absl::StatusOr<const TensorInfo*> Get(std::string_view name, const std::vector<int64_t>& shape) const;

  // The tensor's bytes as stored, of any dtype; valid while a copy of the reader lives. NOT aligned to the element in
  // files of other writers: copy with memcpy, do not cast, unless the address was checked. `tensor` is one of
  // tensors().
  std::string_view Bytes(const TensorInfo& tensor) const;
  absl::StatusOr<std::string_view> Bytes(std::string_view name) const;

  // F32, F16 and BF16 as float32, exactly; other dtypes are refused.
  absl::StatusOr<std::vector<float>> ReadFloat32(std::string_view name) const;
  // The same into memory of the caller's, which must have exactly the tensor's number of elements.
  absl::Status ReadFloat32(const TensorInfo& tensor, absl::Span<float> out) const;
  // I64, I32 and U8; other dtypes are refused.
  absl::StatusOr<std::vector<int64_t>> ReadInt64(std::string_view name) const;
  // The same; INVALID_ARGUMENT naming the index if a value is outside int32.
  absl::StatusOr<std::vector<int32_t>> ReadInt32(std::string_view name) const;

 private:
  struct Contents {
    std::string source;
    SafetensorsHeader header;
    std::map<std::string_view, size_t> index;  // name (in header.tensors) -> index
    std::string_view data;                     // what the offsets count from
    std::shared_ptr<const void> owner;         // of the bytes; null if they are the caller's
  };

  explicit SafetensorsReader(std::shared_ptr<const Contents> contents) : contents_(std::move(contents)) {}
  static absl::StatusOr<SafetensorsReader> Parse(std::string_view bytes, std::shared_ptr<const void> owner,
                                                 std::string_view source);

  std::shared_ptr<const Contents> contents_;
};

}  // namespace smt
