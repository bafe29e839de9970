#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "model/cuda/kernels.h"

namespace smt::cuda {

void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

}  // namespace smt::cuda
