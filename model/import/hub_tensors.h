// The tensors of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json names.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/io/safetensors.h"

namespace smt {

class HubTensors {
 public:
  struct Entry {
    size_t shard;
    const TensorInfo* info;
  };

  // NOT_FOUND naming what is missing; INVALID_ARGUMENT for an index that is not one, names a tensor that its shard does
  // not have, or leaves the folder.
  static absl::StatusOr<HubTensors> Open(const std::string& dir);

  const std::map<std::string, Entry, std::less<>>& entries() const { return entries_; }
  std::string_view Bytes(const Entry& entry) const { return shards_[entry.shard].Bytes(*entry.info); }
  // F32, F16 or BF16 as float32.
  absl::StatusOr<std::vector<float>> Float32(const Entry& entry) const;

 private:
  std::vector<SafetensorsReader> shards_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace smt
