smt_program(ops_benchmark SRCS ops_benchmark.cc
  DEPS smt_cpu_runner smt_checkpoint smt_ops LibTorch::cpu benchmark::benchmark)
