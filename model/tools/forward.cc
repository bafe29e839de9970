// smt_model forward.
#include "model/base/status_macros.h"
#include "model/config.h"
#include "model/io/safetensors_writer.h"
#include "model/tools/commands.h"
#include "model/tools/compute.h"

namespace smt::tools {

absl::Status RunForward(const ForwardCommandOptions& options) {
  ASSIGN_OR_RETURN(const StrideHybridConfig config, StrideHybridConfig::Load(options.model_dir));
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadInputIds(options.ids, config.vocab_size));
  ComputeOptions compute{options.model_dir, options.device, options.dtype, std::nullopt};
  ASSIGN_OR_RETURN(compute.window_policy, PolicyFlag("--window_policy", options.window_policy));
  ASSIGN_OR_RETURN(const Computed computed,
                   options.stepwise ? ComputeStepwise(compute, ids) : ComputeParallel(compute, ids));
  const int64_t length = static_cast<int64_t>(ids.size()), writes = length / config.stride;
  SafetensorsWriter writer;
  RETURN_IF_ERROR(writer.AddFloat32("logits", {length, config.vocab_size}, computed.logits));
  RETURN_IF_ERROR(writer.AddFloat32("ssm_outputs", {writes, config.d_model}, computed.ssm_outputs));
  RETURN_IF_ERROR(writer.AddFloat32("pool_weights", {writes, config.window()}, computed.pool_weights));
  return writer.WriteFile(options.out);
}

}  // namespace smt::tools
