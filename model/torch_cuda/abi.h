// The C interface between the programs and libsmt_torch_cuda.so, which they load at run time.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Raised whenever the meaning of the interface changes; a module of another version is refused.
#define SMT_TORCH_CUDA_ABI_VERSION 1

// Makes LibTorch's CUDA backend usable on device `index`, in full float32 precision (TF32 off). Returns 0 and writes
// the device's name to `message`, or another value and the reason. `message` is always terminated.
#define SMT_TORCH_CUDA_OPEN "smt_torch_cuda_open"
extern "C" typedef int (*SmtTorchCudaOpen)(uint32_t abi_version, int index, char* message, size_t message_size);
