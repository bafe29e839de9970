#include "model/tools/compute.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/device.h"
#include "model/io/safetensors.h"
#include "model/runners.h"
#include "model/stride_hybrid_model.h"

namespace smt::tools {
namespace {

std::vector<float> Values(const at::Tensor& tensor) {
  const at::Tensor host = tensor.to(at::kCPU, at::kFloat).contiguous();
  return {host.data_ptr<float>(), host.data_ptr<float>() + host.numel()};
}

absl::StatusOr<at::ScalarType> WindowDType(const std::string& dtype) {
  if (dtype == "float32") return at::kFloat;
  if (dtype == "bfloat16") return at::kBFloat16;
  return absl::InvalidArgumentError(
      fields::Violation("--dtype", StrCat("\"", fields::ShowValue(dtype), "\""), "\"float32\" or \"bfloat16\""));
}

}  // namespace

absl::StatusOr<Computed> ComputeParallel(const ComputeOptions& options, std::span<const int32_t> ids) {
  LoadOptions load;
  ASSIGN_OR_RETURN(load.dtype, WindowDType(options.dtype));
  ASSIGN_OR_RETURN(const Device device, ResolveDevice(options.device));
  load.device = device.name;
  load.window_policy = options.window_policy;
  ASSIGN_OR_RETURN(StrideHybridModel model, LoadStrideHybridModel(options.model_dir, load));
  const StateLayout layout(model->config());
  Computed computed;
  computed.state.resize(layout.bytes());
  if (ids.empty()) return computed;  // no window: nothing but the state of nothing

  const c10::InferenceMode inference;
  const at::Tensor host = at::empty({1, static_cast<int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), host.data_ptr<int64_t>());
  const ForwardResult result = model->Forward(host.to(model->device()));
  computed.logits = Values(result.logits);
  computed.ssm_outputs = Values(result.aux.ssm_outputs);
  computed.pool_weights = Values(result.aux.pool_weights);
  PackState(result.aux.final_state, 0, layout, computed.state);
  return computed;
}

absl::StatusOr<std::unique_ptr<SlotRunner>> NewRunner(const ComputeOptions& options) {
  RETURN_IF_ERROR(WindowDType(options.dtype).status());
  ASSIGN_OR_RETURN(const Device device, ResolveDevice(options.device));
  RunnerOptions runner;
  runner.model_dir = options.model_dir;
  runner.device = device.name;
  runner.dtype = options.dtype;
  runner.slots = 1;
  runner.window_policy = options.window_policy;
  return NewSlotRunner(runner);
}

absl::StatusOr<Computed> ComputeStepwise(const ComputeOptions& options, std::span<const int32_t> ids) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotRunner> runner, NewRunner(options));
  const size_t vocab = static_cast<size_t>(runner->config().vocab_size);
  Computed computed;
  runner->SetWriteObserver([&](const SlotRunner::WriteEvent& write) {
    computed.ssm_outputs.insert(computed.ssm_outputs.end(), write.ssm_output.begin(), write.ssm_output.end());
    computed.pool_weights.insert(computed.pool_weights.end(), write.pool_weights.begin(), write.pool_weights.end());
  });
  constexpr int32_t kSlot[] = {0};
  runner->Reset(0);
  computed.logits.resize(ids.size() * vocab);
  for (size_t i = 0; i < ids.size(); ++i) runner->Step(kSlot, ids.subspan(i, 1), computed.logits.data() + i * vocab);
  computed.state.resize(runner->layout().bytes());
  runner->Save(0, computed.state);
  return computed;
}

absl::StatusOr<std::vector<int32_t>> ReadInputIds(const std::string& path, int64_t vocab_size) {
  ASSIGN_OR_RETURN(const SafetensorsReader file, SafetensorsReader::Open(path));
  const TensorInfo* info = file.Find("input_ids");
  if (info == nullptr) return absl::InvalidArgumentError(StrCat(path, " has no tensor input_ids, must have it"));
  const std::vector<int64_t>& shape = info->shape;
  if (shape.size() != 1 && !(shape.size() == 2 && shape[0] == 1)) {
    return absl::InvalidArgumentError(
        StrCat(path, ": input_ids is ", ShapeToString(shape), ", must be [L] or [1, L]: one sequence of ids"));
  }
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, file.ReadInt32("input_ids"));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return absl::InvalidArgumentError(
        StrCat(path, ": input_ids[", i, "] is ", ids[i], ", must be in [0, ", vocab_size, "), the vocabulary"));
  }
  return ids;
}

}  // namespace smt::tools
