smt_program(smt_engine_benchmark
  SRCS ${CMAKE_CURRENT_LIST_DIR}/engine_benchmark.cc
  DEPS smt_engine smt_sampling absl::synchronization benchmark::benchmark)
