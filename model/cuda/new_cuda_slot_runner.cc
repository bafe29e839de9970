// NewCudaSlotRunner: what the options and the device allow, then the weights, then as many slots as fit.
#include <cuda_runtime_api.h>

#include <exception>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/cuda/cuda_runner.h"
#include "model/cuda/cuda_slot_runner.h"
#include "model/sampling/log_softmax.h"

namespace smt {
namespace cuda {
namespace {

Type WindowType(const CudaSlotRunnerOptions& options) {
  switch (options.dtype) {
    case WindowDType::kFloat32:
      break;
    case WindowDType::kBfloat16:
      return Type::kBfloat16;
    case WindowDType::kFloat16:
      return Type::kFloat16;
  }
  return Type::kFloat32;
}

// What the weights have left for slots, work area and driver, from the sizes that the passes allocate.
SlotCapacity CountCapacity(const StrideHybridConfig& config, const CudaSlotRunnerOptions& options) {
  constexpr int64_t kDriver = 256 << 20;  // roundings, graphs, kernels that are loaded when they are first used
  const int64_t size = SizeOf(WindowType(options)), w = config.window(), d = config.d_model;
  const int64_t ld = Padded(d);
  const int64_t row =
      sizeof(Row) + sizeof(Group) + 8 + 2 * 4 * ld + size * (2 * ld + Padded(3 * d) + Padded(config.mlp_width()));
  const int64_t head = 4 * (config.vocab_size + 3) + size * ld;
  const int64_t write = sizeof(Write) + 4 * (config.m_input_tokens + 2 * w) + MemoryLayers::BytesPerRow(config);
  size_t available = 0, total = 0;
  CheckCuda(cudaMemGetInfo(&available, &total), "asking for free device memory");
  SlotCapacity capacity;
  capacity.total_bytes = static_cast<int64_t>(total);
  capacity.free_bytes = static_cast<int64_t>(available);
  capacity.work_bytes = kDriver + 2 * kAddendRoomBytes + TransformerPass::kMaxRows * row +
                        TransformerPass::kMaxHeadRows * head + WritePass::kMaxWrites * write;
  if (config.pool_scope == PoolScope::kTokens) capacity.work_bytes += SequencePass::WorkBytes(config);
  capacity.slot_bytes = static_cast<int64_t>(StateLayout(config).bytes()) + 256 +
                        (config.transformer.n_layer * 2 * w * d + 8) * size + ld * size +
                        CudaSlotRunner::PlanBytes(config);
  return capacity;
}

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<SlotRunner>> NewCudaSlotRunner(const StrideHybridConfig& config,
                                                              const WeightSource& source,
                                                              const CudaSlotRunnerOptions& options) {
  if (options.slots < 1) {
    return absl::InvalidArgumentError(absl::StrCat("slots is ", options.slots, "; allowed: >= 1"));
  }
  if (config.window() > cuda::TransformerPass::kMaxRows) {
    return absl::InvalidArgumentError(absl::StrCat("the window (n_ssm_outputs + m_input_tokens) is ", config.window(),
                                                   "; allowed on a GPU: up to ", cuda::TransformerPass::kMaxRows));
  }
  if (config.vocab_size > kMaxTerms) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocab_size is ", config.vocab_size, "; allowed on a GPU: up to ", kMaxTerms));
  }
  try {
    cuda::CheckCuda(cudaSetDevice(options.index), "choosing the device");
    ASSIGN_OR_RETURN(std::unique_ptr<cuda::CudaWeights> weights,
                     cuda::CudaWeights::Load(config, source, cuda::WindowType(options)));
    const SlotCapacity capacity = cuda::CountCapacity(config, options);
    CudaSlotRunnerOptions chosen = options;
    ASSIGN_OR_RETURN(chosen.slots, SlotsThatFit(capacity, options.slots, options.fewer_slots));
    return std::make_unique<cuda::CudaSlotRunner>(config, chosen, capacity, std::move(weights));
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace smt
