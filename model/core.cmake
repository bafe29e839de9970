# smt_model: the model itself on LibTorch; reads like the paper.
smt_library(smt_model
  SRCS layers.cc attention_pooling.cc windowed_transformer.cc gpt2_transformer.cc simple_causal_transformer.cc
       ssm_memory.cc mamba.cc simple_ssm.cc
       hybrid_state.cc window_manager.cc stride_hybrid_model.cc forward.cc
       key_value_cache.cc torch_slot_runner.cc
       load_model.cc runners.cc generate.cc
  DEPS smt_config smt_sampling LibTorch::cpu
  PRIVATE_DEPS smt_checkpoint smt_device smt_cpu_runner)
