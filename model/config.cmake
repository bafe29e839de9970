# smt_config: what a model is made of, without LibTorch: hyperparameters, shapes, tensor names, sizes and costs.
smt_library(smt_config
  SRCS config.cc config_fields.cc config_json.cc cost_model.cc parameter_statistics.cc slot_capacity.cc state_layout.cc
       tensor_names.cc
       training_config.cc
  DEPS smt_model_base absl::status absl::statusor absl::strings absl::str_format
  PRIVATE_DEPS nlohmann_json::nlohmann_json)

smt_library(smt_sha256 SRCS base/sha256.cc PRIVATE_DEPS OpenSSL::Crypto)

# smt_checkpoint: a model folder opened for reading, weights mapped and checked.
smt_library(smt_checkpoint
  SRCS checkpoint.cc
  DEPS smt_config smt_io
  PRIVATE_DEPS smt_sha256 nlohmann_json::nlohmann_json)
