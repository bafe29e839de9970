# smt_torch_executor: the Executor over model/'s SlotRunners. Apart from smt_engine, which knows no LibTorch.
smt_library(smt_torch_executor
  SRCS cuda_executor.cc runner_executor.cc torch_executor.cc torch_executor_factory.cc
  DEPS smt_config smt_sampling smt_device smt_model absl::status absl::statusor absl::strings)
