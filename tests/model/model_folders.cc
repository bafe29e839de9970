#include "tests/model/model_folders.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/import/initializer.h"
#include "model/import/presets.h"

namespace smt::testing {

StrideHybridConfig TinyConfig() { return FindPreset("tiny")->config; }

StoredTensor Zeros(std::vector<int64_t> shape, SafetensorsDType dtype) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return {dtype, std::move(shape), std::string(static_cast<size_t>(count * BitsPerElement(dtype) / 8), '\0')};
}

StoredTensors RandomTensors(const StrideHybridConfig& config,
                            const std::function<std::string(const TensorSpec&)>& rename) {
  StoredTensors tensors;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    const std::string name = rename(spec);
    if (name.empty()) continue;
    tensors[name] = {SafetensorsDType::kF32, spec.shape,
                     *EncodeFloats(SafetensorsDType::kF32, InitialValues(spec, config, 5))};
  }
  return tensors;
}

void WriteTensors(const std::string& path, const StoredTensors& tensors) {
  SafetensorsWriter writer;
  for (const auto& [name, tensor] : tensors) {
    ASSERT_TRUE(writer.Add(name, tensor.dtype, tensor.shape, tensor.bytes).ok()) << name;
  }
  ASSERT_TRUE(writer.WriteFile(path).ok());
}

void WriteText(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

HubFolders MakeHubFolders(const StrideHybridConfig& c) {
  HubFolders folders;
  folders.gpt2 = RandomTensors(c, [](const TensorSpec& spec) -> std::string {
    if (spec.part == ModelPart::kSsm || spec.part == ModelPart::kPooling) return "";
    return spec.part == ModelPart::kHead ? spec.name : spec.name.substr(std::string("transformer.").size());
  });
  for (int64_t i = 0; i < c.transformer.n_layer; ++i) {
    const int64_t positions = c.transformer.n_positions;
    folders.gpt2["h." + std::to_string(i) + ".attn.bias"] = Zeros({1, 1, positions, positions}, SafetensorsDType::kU8);
  }
  folders.mamba = RandomTensors(c, [](const TensorSpec& spec) -> std::string {
    return spec.part == ModelPart::kSsm ? spec.name.substr(std::string("ssm.").size()) : "";
  });
  folders.mamba["backbone.embeddings.weight"] = Zeros({50280, 1});
  nlohmann::ordered_json gpt2 = {{"model_type", "gpt2"},
                                 {"activation_function", "gelu_new"},
                                 {"n_embd", c.d_model},
                                 {"n_layer", c.transformer.n_layer},
                                 {"n_head", c.transformer.n_head},
                                 {"n_positions", c.transformer.n_positions},
                                 {"n_inner", nullptr},
                                 {"vocab_size", c.vocab_size},
                                 {"layer_norm_epsilon", c.transformer.layer_norm_epsilon},
                                 {"tie_word_embeddings", c.tie_word_embeddings},
                                 {"eos_token_id", *c.eos_token_id},
                                 {"bos_token_id", *c.bos_token_id}};
  nlohmann::ordered_json mamba = {{"model_type", "mamba"},
                                  {"hidden_size", c.d_model},
                                  {"num_hidden_layers", c.ssm.n_layer},
                                  {"state_size", c.ssm.d_state},
                                  {"conv_kernel", c.ssm.d_conv},
                                  {"expand", c.ssm.expand},
                                  {"intermediate_size", c.d_inner()},
                                  {"time_step_rank", c.dt_rank()},
                                  {"layer_norm_epsilon", c.ssm.rms_norm_epsilon},
                                  {"use_bias", false},
                                  {"use_conv_bias", true},
                                  {"hidden_act", "silu"}};
  folders.gpt2_config = gpt2.dump();
  folders.mamba_config = mamba.dump();
  return folders;
}

void HubFolders::Write(const std::string& dir) const {
  std::filesystem::create_directories(dir + "/gpt2");
  std::filesystem::create_directories(dir + "/mamba");
  WriteText(dir + "/gpt2/config.json", gpt2_config);
  WriteText(dir + "/mamba/config.json", mamba_config);
  WriteTensors(dir + "/gpt2/model.safetensors", gpt2);
  WriteTensors(dir + "/mamba/model.safetensors", mamba);
}

}  // namespace smt::testing
