// libsmt_cuda.so: our own kernels with the CUDA runtime linked in; needs a driver and no library of NVIDIA's.
#include <cuda_runtime_api.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "model/cuda/abi.h"

namespace smt {
namespace {

std::string Version(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

absl::StatusOr<std::string> Open(int index) {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return absl::UnavailableError("no NVIDIA driver is loaded (libcuda.so.1 is not there)");
  if (driver < runtime / 1000 * 1000) {
    return absl::UnavailableError(absl::StrCat("the NVIDIA driver is too old: it supports CUDA ", Version(driver),
                                               ", this build needs ", Version(runtime)));
  }
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    return absl::UnavailableError(absl::StrCat("the NVIDIA driver shows no device (is CUDA_VISIBLE_DEVICES empty?): ",
                                               cudaGetErrorString(error)));
  }
  if (index < 0 || index >= count) {
    return absl::InvalidArgumentError(absl::StrCat("device index is ", index, "; allowed: 0 to ", count - 1));
  }
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    return absl::UnavailableError(cudaGetErrorString(error));
  }
  if (properties.major < 8) {
    return absl::UnavailableError(absl::StrCat(properties.name, " has compute capability ", properties.major, ".",
                                               properties.minor, "; needed: 8.0 or later"));
  }
  return std::string(properties.name);
}

}  // namespace
}  // namespace smt

extern "C" __attribute__((visibility("default"))) const smt::CudaModule* smt_cuda_entry(uint32_t abi_version) {
  static constexpr smt::CudaModule kModule = {.open = smt::Open, .new_runner = smt::NewCudaSlotRunner};
  return abi_version == SMT_CUDA_ABI_VERSION ? &kModule : nullptr;
}
