# smt_import: makes model folders: from published checkpoints, or with random weights. No LibTorch.
smt_library(smt_import
  SRCS import/byte_vocabulary.cc import/hub_config.cc import/hub_tensors.cc import/importer.cc import/initializer.cc
       import/model_folder.cc import/presets.cc
  DEPS smt_checkpoint smt_tokenizer
  PRIVATE_DEPS nlohmann_json::nlohmann_json)

# The program bin/smt_model (the target of that name is the library).
smt_library(smt_model_commands
  SRCS tools/compute.cc tools/forward.cc tools/generate.cc tools/ids_json.cc tools/import.cc tools/info.cc
       tools/tokenize.cc tools/verify.cc
  DEPS smt_device smt_import smt_model smt_sampling smt_tokenizer
  PRIVATE_DEPS nlohmann_json::nlohmann_json)
smt_program(smt_model_tool SRCS tools/main.cc DEPS smt_model_commands CLI11::CLI11)
set_target_properties(smt_model_tool PROPERTIES OUTPUT_NAME smt_model)
