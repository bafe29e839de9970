#include "server/model_description.h"

#include <filesystem>

#include "model/cost_model.h"
#include "model/parameter_statistics.h"

namespace smt {

v1::Model DescribeModel(const std::string& model_dir, const std::string& fingerprint, const StrideHybridConfig& config,
                        WindowPolicy policy, const ExecutorInfo& info, const RequestLimits& limits) {
  v1::Model model;
  std::filesystem::path folder(model_dir);
  if (folder.filename().empty()) folder = folder.parent_path();  // "models/a/"
  model.set_name("models/" + folder.filename().string());
  model.set_fingerprint(fingerprint);

  v1::ModelConfig* shape = model.mutable_config();
  shape->set_vocab_size(static_cast<int32_t>(config.vocab_size));
  shape->set_d_model(static_cast<int32_t>(config.d_model));
  shape->set_memory_slots(static_cast<int32_t>(config.n_ssm_outputs));
  shape->set_input_tokens(static_cast<int32_t>(config.m_input_tokens));
  shape->set_stride(static_cast<int32_t>(config.stride));
  shape->set_pool_scope(std::string(Name(config.pool_scope)));
  shape->set_transformer_kind(std::string(Name(config.transformer.kind)));
  shape->set_transformer_layers(static_cast<int32_t>(config.transformer.n_layer));
  shape->set_transformer_heads(static_cast<int32_t>(config.transformer.n_head));
  shape->set_ssm_kind(std::string(Name(config.ssm.kind)));
  shape->set_ssm_layers(static_cast<int32_t>(config.ssm.n_layer));
  if (config.bos_token_id) shape->set_bos_token_id(static_cast<int32_t>(*config.bos_token_id));
  if (config.eos_token_id) shape->set_eos_token_id(static_cast<int32_t>(*config.eos_token_id));
  shape->set_config_json(config.ToJson());

  const int64_t weight_bytes = info.dtype == "float32" ? 4 : 2;
  for (const auto& [part, count] : CountParameters(config).by_part) {
    v1::ParameterStatistics* statistics = model.add_parameters();
    statistics->set_part(std::string(Name(part)));
    statistics->set_parameters(count);
    statistics->set_bytes(count * weight_bytes);
  }

  const CostModel cost(config, static_cast<double>(weight_bytes));
  const TokenCost token = policy == WindowPolicy::kHop ? cost.Hop() : cost.Slide();
  v1::TokenCost* out = model.mutable_token_cost();
  out->set_multiply_adds(token.multiply_adds);
  out->set_write_multiply_adds(cost.Write().multiply_adds / static_cast<double>(config.stride));
  out->set_prompt_multiply_adds(cost.Ingest().multiply_adds);
  out->set_weight_bytes(token.weight_bytes);
  out->set_session_bytes(token.session_bytes);
  model.set_state_bytes_per_session(info.state_bytes);

  v1::ModelRuntime* runtime = model.mutable_runtime();
  runtime->set_device(info.device);
  runtime->set_dtype(info.dtype);
  runtime->set_window_policy(std::string(Name(policy)));
  runtime->set_deterministic(info.deterministic);
  runtime->set_numerics_id(info.numerics_id);
  runtime->set_slots(info.slots);
  runtime->set_slot_bytes(info.slot_bytes);

  v1::RequestLimits* bounds = model.mutable_limits();
  bounds->set_max_prompt_bytes(limits.max_prompt_bytes);
  bounds->set_max_prompt_tokens(limits.max_prompt_tokens);
  bounds->set_max_tokens(limits.max_tokens);
  bounds->set_default_max_tokens(limits.default_max_tokens);
  bounds->set_max_stop_strings(limits.max_stop_strings);
  bounds->set_max_stop_string_bytes(limits.max_stop_string_bytes);
  bounds->set_max_stop_token_ids(limits.max_stop_token_ids);
  bounds->set_max_logit_bias(limits.max_logit_bias);
  bounds->set_max_top_logprobs(limits.max_top_logprobs);
  return model;
}

}  // namespace smt
