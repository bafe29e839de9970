# smt_import: makes model folders: from published checkpoints, or with random weights. No LibTorch.
smt_library(smt_import
  SRCS import/byte_vocabulary.cc import/hub_config.cc import/hub_tensors.cc import/importer.cc import/initializer.cc
       import/model_folder.cc import/presets.cc
  DEPS smt_checkpoint
  PRIVATE_DEPS nlohmann_json::nlohmann_json)
