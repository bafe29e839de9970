smt_program(smt_store_benchmark SRCS store_benchmark.cc DEPS smt_store_testing benchmark::benchmark)
