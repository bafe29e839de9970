// Small model folders in temporary directories, for tests of what reads and makes them.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/io/safetensors_writer.h"
#include "model/tensor_names.h"

namespace smt::testing {

// The `tiny` preset's shape.
StrideHybridConfig TinyConfig();

struct StoredTensor {
  SafetensorsDType dtype = SafetensorsDType::kF32;
  std::vector<int64_t> shape;
  std::string bytes;
};
using StoredTensors = std::map<std::string, StoredTensor>;

// Random values for every tensor of `config`, under the names that `rename` gives; an empty name leaves one out.
StoredTensors RandomTensors(const StrideHybridConfig& config,
                            const std::function<std::string(const TensorSpec&)>& rename);
StoredTensor Zeros(std::vector<int64_t> shape, SafetensorsDType dtype = SafetensorsDType::kF32);

void WriteTensors(const std::string& path, const StoredTensors& tensors);
void WriteText(const std::string& path, const std::string& text);

// A Hugging Face GPT-2 and a Mamba folder that together are `config`.
struct HubFolders {
  StoredTensors gpt2, mamba;
  std::string gpt2_config, mamba_config;
  // Into dir/gpt2 and dir/mamba.
  void Write(const std::string& dir) const;
};
HubFolders MakeHubFolders(const StrideHybridConfig& config);

}  // namespace smt::testing
