smt_test(smt_engine_model_test
  SRCS ${CMAKE_SOURCE_DIR}/tests/server/engine/engine_model_test.cc
       ${CMAKE_SOURCE_DIR}/tests/server/engine/fake_executor.cc
       ${CMAKE_SOURCE_DIR}/tests/model/tiny_models.cc
  DEPS smt_engine smt_torch_executor smt_model smt_cpu_runner LABELS server)
