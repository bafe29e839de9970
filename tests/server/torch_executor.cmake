smt_test(smt_executor_contract_test
  SRCS ${CMAKE_SOURCE_DIR}/tests/server/engine/cuda_executor_test.cc
       ${CMAKE_SOURCE_DIR}/tests/server/engine/cuda_runner_test.cc
       ${CMAKE_SOURCE_DIR}/tests/server/engine/executor_contract_test.cc
       ${CMAKE_SOURCE_DIR}/tests/server/engine/executor_draw_test.cc
       ${CMAKE_SOURCE_DIR}/tests/server/engine/executor_state_test.cc
       ${CMAKE_SOURCE_DIR}/tests/server/engine/torch_executor_test.cc ${CMAKE_SOURCE_DIR}/tests/model/tiny_models.cc
  DEPS smt_torch_executor smt_engine smt_model smt_cpu_runner smt_device LABELS server)
