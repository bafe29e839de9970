// Stands in for NVIDIA's driver (libcuda.so.1, found through LD_LIBRARY_PATH) on a machine where that is older than
// what the build needs, or shows no device: the faults before anything is computed. STUB_DRIVER_VERSION is what it says
// of itself, 13000 for CUDA 13.0.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

// Of cuda.h, which the machine may not have.
constexpr int kSuccess = 0, kNoDevice = 100, kNotFound = 500;

extern "C" {

int cuDriverGetVersion(int* version) {
  const char* const says = std::getenv("STUB_DRIVER_VERSION");
  *version = says == nullptr ? 0 : std::atoi(says);
  return kSuccess;
}

int cuInit(unsigned) { return kNoDevice; }

int cuDeviceGetCount(int* count) {
  *count = 0;
  return kNoDevice;
}

// How the runtime finds all of the others.
int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found) {
  static void* const self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = dlsym(self, std::strcmp(name, "cuGetProcAddress") == 0 ? "cuGetProcAddress_v2" : name);
  if (found != nullptr) *found = *function == nullptr ? 1 : 0;
  return *function == nullptr ? kNotFound : kSuccess;
}

int cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

}  // extern "C"
