# smt_config: what a model is made of, without LibTorch: hyperparameters, shapes, tensor names, sizes and costs.
smt_library(smt_config
  SRCS config.cc config_fields.cc config_json.cc cost_model.cc parameter_statistics.cc state_layout.cc tensor_names.cc
       training_config.cc
  DEPS smt_model_base absl::status absl::statusor absl::strings absl::str_format
  PRIVATE_DEPS nlohmann_json::nlohmann_json)
