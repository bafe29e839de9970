// libsmt_torch_cuda.so: linked against LibTorch's CUDA libraries, so that loading it registers CUDA with LibTorch. A
// program that linked them itself would carry their thread-local storage into every thread, and need them where there
// is no GPU.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <cstdio>
#include <exception>
#include <string>

#include "model/torch_cuda/abi.h"

namespace {

// Of the driver's own library, loaded already by the CUDA runtime.
template <typename Function>
Function DriverFunction(const char* name) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  return driver == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(driver, name));
}

std::string Version(long version) {  // 13000 is 13.0
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string WhyNoDevice() {
  int driver = 0;
  const auto driver_version = DriverFunction<int (*)(int*)>("cuDriverGetVersion");
  if (driver_version == nullptr) return "no NVIDIA driver is loaded (libcuda.so.1 is not there)";
  const long needed = at::detail::getCUDAHooks().versionCUDART();
  if (driver_version(&driver) == 0 && driver < needed / 1000 * 1000) {
    return "the NVIDIA driver is too old: it supports CUDA " + Version(driver) + ", this LibTorch needs " +
           Version(needed);
  }
  return "the NVIDIA driver shows no device (is CUDA_VISIBLE_DEVICES empty?)";
}

std::string DeviceName(int index) {
  char name[256] = "NVIDIA GPU";
  const auto get_name = DriverFunction<int (*)(char*, int, int)>("cuDeviceGetName");
  if (get_name != nullptr && get_name(name, sizeof(name), index) != 0) return "NVIDIA GPU";
  return name;
}

// LibTorch warns on stderr where the driver fails; the reason comes back as a message instead.
class SilentWarnings final : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override {}
};

int Open(int index, std::string* message) {
  SilentWarnings silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  const at::CUDAHooksInterface& hooks = at::detail::getCUDAHooks();
  if (!hooks.hasCUDART()) {
    *message = "LibTorch was asked about CUDA before the module was loaded";
    return 3;
  }
  const int count = hooks.deviceCount();
  if (count <= 0) {
    *message = WhyNoDevice();
    return 2;
  }
  if (index < 0 || index >= count) {
    *message = "device index is " + std::to_string(index) + "; allowed: 0 to " + std::to_string(count - 1);
    return 4;
  }
  at::globalContext().lazyInitDevice(at::kCUDA);
  at::globalContext().setFloat32MatmulPrecision("highest");
  at::globalContext().setAllowTF32CuDNN(false);
  *message = DeviceName(index);
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int smt_torch_cuda_open(uint32_t abi_version, int index,
                                                                          char* message, size_t message_size) {
  std::string text;
  int code = 0;
  if (abi_version != SMT_TORCH_CUDA_ABI_VERSION) {
    text = "the module has ABI version " + std::to_string(SMT_TORCH_CUDA_ABI_VERSION) + ", the program wants " +
           std::to_string(abi_version);
    code = 1;
  } else {
    try {
      code = Open(index, &text);
    } catch (const std::exception& error) {
      text = error.what();
      text = text.substr(0, text.find('\n'));  // without LibTorch's stack trace
      code = 5;
    }
  }
  std::snprintf(message, message_size, "%s", text.c_str());
  return code;
}
