set(config_tests ${CMAKE_SOURCE_DIR}/tests/model)
smt_test(smt_config_test
  SRCS ${config_tests}/config_test.cc ${config_tests}/training_config_test.cc ${config_tests}/cost_model_test.cc
       ${config_tests}/slot_capacity_test.cc
  DEPS smt_config smt_testing LABELS model)

smt_test(smt_import_test
  SRCS ${config_tests}/checkpoint_test.cc ${config_tests}/importer_test.cc ${config_tests}/model_folders.cc
  DEPS smt_import smt_sha256 smt_testing nlohmann_json::nlohmann_json LABELS model)

smt_test(smt_model_cli_test
  SRCS ${config_tests}/smt_model_cli_test.cc ${config_tests}/model_folders.cc
  DEPS smt_import smt_testing nlohmann_json::nlohmann_json TIMEOUT 600 LABELS model)
add_dependencies(smt_model_cli_test smt_model_tool)
