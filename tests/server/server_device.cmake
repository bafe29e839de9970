smt_test(smt_server_device_test
  SRCS ${CMAKE_SOURCE_DIR}/tests/server/server_device_test.cc
  DEPS smt_server_parts smt_server_process smt_torch_executor nlohmann_json::nlohmann_json LABELS server)
