smt_test(smt_ops_test SRCS ${CMAKE_SOURCE_DIR}/tests/model/ops_test.cc DEPS smt_ops LABELS model)
