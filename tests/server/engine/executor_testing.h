// What the tests of executors and of the runners below them share.
#pragma once

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/cuda/abi.h"
#include "model/cuda_plugin.h"
#include "model/device.h"
#include "model/sampling/sampling_params.h"
#include "model/slot_runner.h"
#include "tests/model/tiny_models.h"

namespace smt {

using Bytes = std::vector<std::byte>;
using Ids = std::vector<int32_t>;

constexpr int32_t kSlots = 4;

// Asked once, before LibTorch is asked about CUDA by anything else.
class Gpu : public testing::Environment {
 public:
  void SetUp() override { device() = ResolveDevice("cuda"); }
  static absl::StatusOr<Device>& device() {
    static absl::StatusOr<Device> device = absl::UnknownError("not asked yet");
    return device;
  }
};
inline const testing::Environment* const kGpu = testing::AddGlobalTestEnvironment(new Gpu);

inline WeightSource RandomWeights(const StrideHybridConfig& config) {
  return [model = RandomModel(config)](const std::string& name, const std::vector<int64_t>&) {
    const at::Tensor value = model->named_parameters()[name].detach().contiguous();
    return absl::StatusOr<std::vector<float>>(
        std::vector<float>(value.data_ptr<float>(), value.data_ptr<float>() + value.numel()));
  };
}

inline std::unique_ptr<SlotRunner> CudaKernelRunner(const StrideHybridConfig& config, WindowDType dtype) {
  return *(*LoadCudaModule())->new_runner(config, RandomWeights(config), {.index = 0, .slots = kSlots, .dtype = dtype});
}

// Parameters that differ from the defaults as `change` makes them.
inline std::shared_ptr<const SamplingParams> Params(const std::function<void(SamplingParams&)>& change) {
  SamplingParams params;
  change(params);
  return std::make_shared<const SamplingParams>(std::move(params));
}
inline std::shared_ptr<const SamplingParams> Greedy() {
  return Params([](SamplingParams& p) { p.temperature = 0; });
}
inline std::shared_ptr<const SamplingParams> Seeded(uint64_t seed) {
  return Params([=](SamplingParams& p) { p.seed = seed; });
}

}  // namespace smt
