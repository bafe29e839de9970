# smt_model: the model itself on LibTorch; reads like the paper.
smt_library(smt_model
  SRCS layers.cc attention_pooling.cc windowed_transformer.cc gpt2_transformer.cc simple_causal_transformer.cc
       ssm_memory.cc mamba.cc simple_ssm.cc
  DEPS smt_model_base LibTorch::cpu)
