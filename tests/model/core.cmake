smt_test(smt_model_test
  SRCS ${CMAKE_SOURCE_DIR}/tests/model/tiny_models.cc
       ${CMAKE_SOURCE_DIR}/tests/model/gradient_test.cc
       ${CMAKE_SOURCE_DIR}/tests/model/reference_fixture_test.cc
       ${CMAKE_SOURCE_DIR}/tests/model/ssm_memory_test.cc
       ${CMAKE_SOURCE_DIR}/tests/model/stride_hybrid_model_test.cc
       ${CMAKE_SOURCE_DIR}/tests/model/torch_slot_runner_test.cc
       ${CMAKE_SOURCE_DIR}/tests/model/window_manager_test.cc
  DEPS smt_model smt_io)
# Tiny tensors: threads only wait for one another, the more so beside other tests.
set_property(TEST smt_model_test PROPERTY ENVIRONMENT OMP_NUM_THREADS=1)
