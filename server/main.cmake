# smt_server: the program. smt_server_parts holds what is not main, for tests and benchmarks.
smt_library(smt_server_parts
  SRCS ${CMAKE_CURRENT_LIST_DIR}/model_description.cc ${CMAKE_CURRENT_LIST_DIR}/serve.cc
       ${CMAKE_CURRENT_LIST_DIR}/server.cc ${CMAKE_CURRENT_LIST_DIR}/server_options.cc
  DEPS smt_service smt_engine smt_session smt_store smt_metrics smt_base smt_config
  PRIVATE_DEPS smt_torch_executor smt_checkpoint smt_device smt_io smt_tokenizer nlohmann_json::nlohmann_json)
smt_program(smt_server SRCS ${CMAKE_CURRENT_LIST_DIR}/main.cc
  DEPS smt_server_parts smt_base absl::flags absl::flags_usage)
target_compile_definitions(smt_server_parts PUBLIC SMT_VERSION="${PROJECT_VERSION}")
