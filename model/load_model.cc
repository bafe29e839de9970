// LoadStrideHybridModel: a checkpoint's tensors become the model's parameters. float32 tensors on the CPU are used
// where they lie in the mapped file, if nobody is going to train them; all others are converted into memory of their
// own.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "model/base/status_macros.h"
#include "model/checkpoint.h"
#include "model/device.h"
#include "model/stride_hybrid_model.h"

namespace smt {
namespace {

at::ScalarType TypeOf(SafetensorsDType dtype) {
  if (dtype == SafetensorsDType::kBF16) return at::kBFloat16;
  if (dtype == SafetensorsDType::kF16) return at::kHalf;
  return at::kFloat;
}

// float32, on the CPU. A view keeps the checkpoint.
at::Tensor Values(const std::shared_ptr<const Checkpoint>& checkpoint, const Checkpoint::Tensor& tensor,
                  bool may_view) {
  const at::ScalarType type = TypeOf(tensor.dtype);
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.bytes.data()) % alignof(float) == 0;
  if (may_view && type == at::kFloat && aligned) {
    return at::from_blob(
        const_cast<char*>(tensor.bytes.data()), tensor.shape, [checkpoint](void*) {}, type);
  }
  const at::Tensor stored = at::empty(tensor.shape, type);
  if (!tensor.bytes.empty()) std::memcpy(stored.mutable_data_ptr(), tensor.bytes.data(), tensor.bytes.size());
  return stored.to(at::kFloat);
}

}  // namespace

absl::StatusOr<StrideHybridModel> LoadStrideHybridModel(const std::string& model_dir, const LoadOptions& options) {
  if (options.dtype != at::kFloat && options.dtype != at::kBFloat16) {
    return absl::InvalidArgumentError(std::string("dtype is ") + c10::toString(options.dtype) +
                                      ", allowed float32 or bfloat16");
  }
  ASSIGN_OR_RETURN(const Device device, ResolveDevice(options.device));
  ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(model_dir));
  StrideHybridConfig config = checkpoint->config();
  config.window_policy = options.window_policy.value_or(config.window_policy);
  config.pool_scope = options.pool_scope.value_or(config.pool_scope);
  const std::vector<std::string> violations = config.Validate();
  if (!violations.empty()) return absl::InvalidArgumentError(violations.front());
  try {
    at::NoGradGuard no_grad;
    const bool on_cpu = device.name == "cpu";
    StrideHybridModel model{nullptr};
    {
      SkipInitialValues skip;
      model = StrideHybridModel(config);
    }
    for (auto& item : model->named_parameters()) {
      const Checkpoint::Tensor* tensor = checkpoint->Find(item.key());
      if (tensor == nullptr || tensor->shape != item.value().sizes()) {
        return absl::InternalError("the model and the list of tensors disagree about " + item.key());
      }
      at::Tensor values = Values(checkpoint, *tensor, /*may_view=*/on_cpu && !options.trainable);
      item.value().set_data(on_cpu ? values : values.to(at::Device(device.name)));
      item.value().set_requires_grad(options.trainable);
    }
    model->set_window_dtype(options.dtype);
    if (!options.trainable) model->StoreInWindowDtype();
    return model;
  } catch (const c10::Error& error) {
    return absl::UnavailableError("device " + device.name + ": " + error.what_without_backtrace());
  }
}

}  // namespace smt
