smt_test(smt_ops_test SRCS ${CMAKE_SOURCE_DIR}/tests/model/ops_test.cc DEPS smt_ops LABELS model)
smt_test(smt_cpu_slot_runner_test
  SRCS ${CMAKE_SOURCE_DIR}/tests/model/cpu_slot_runner_test.cc ${CMAKE_SOURCE_DIR}/tests/model/tiny_models.cc
  DEPS smt_cpu_runner smt_checkpoint smt_model LABELS model)
