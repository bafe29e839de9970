// A model's weights in device memory, in the layouts of model/cuda/kernels.h. The window's matrices are float32,
// bfloat16 or float16; pooling and SSM keep float32's precision always, because the memory stream amplifies rounding
// (docs/model.md): float32 beside a float32 window, split beside one of 16 bits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/cpu/weight_source.h"
#include "model/cuda/device_memory.h"
#include "model/cuda/kernels.h"

namespace smt::cuda {

struct SimpleSsmWeights {
  Linear in_proj, out_proj;
  const float *decay = nullptr, *skip = nullptr;
};

class CudaWeights {
 public:
  // What `source` answers where a tensor is missing or has another shape; INVALID_ARGUMENT where one has numbers that
  // float16 cannot hold. Throws on a device error.
  static absl::StatusOr<std::unique_ptr<CudaWeights>> Load(const StrideHybridConfig& config, const WeightSource& source,
                                                           Type window_type);

  Type window_type;
  Type embedding_type;  // bfloat16 where that is exact
  const void* embeddings = nullptr;
  int64_t ld_embeddings = 0;
  const float* positions = nullptr;  // [W, D]
  std::vector<BlockWeights> blocks;
  Norm norm_f;
  Linear head;
  Linear query, key_transposed;
  std::vector<MambaWeights> mamba;
  std::vector<SimpleSsmWeights> simple;
  const float* ssm_norm = nullptr;  // null for the simple SSM
  size_t bytes = 0;                 // of device memory

 private:
  class Loader;
  std::vector<DeviceMemory> memory_;
};

}  // namespace smt::cuda
