#include "model/cuda_plugin.h"

#include <dlfcn.h>

#include <filesystem>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/cuda/abi.h"
#include "model/torch_cuda/abi.h"

namespace smt {
namespace {

absl::StatusOr<void*> LoadModule(const std::string& name, int visibility) {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot read /proc/self/exe: ", error.message()));
  const std::filesystem::path folder = program.parent_path();
  for (const std::filesystem::path& path : {folder / name, folder.parent_path() / "lib" / name}) {
    if (!std::filesystem::exists(path, error)) continue;
    void* module = dlopen(path.c_str(), RTLD_NOW | visibility);  // never unloaded
    if (module != nullptr) return module;
    const char* why = dlerror();
    return absl::UnavailableError(
        absl::StrCat("cannot load ", path.string(), ": ", why == nullptr ? "unknown error" : why));
  }
  return absl::UnavailableError(
      absl::StrCat("this build has no CUDA support: ", name, " is neither in ", folder.string(), " nor in its ../lib"));
}

absl::StatusOr<void*> LoadFunction(const std::string& name, int visibility, const char* function) {
  ASSIGN_OR_RETURN(void* const module, LoadModule(name, visibility));
  void* const found = dlsym(module, function);
  if (found == nullptr) return absl::FailedPreconditionError(absl::StrCat(name, " has no ", function));
  return found;
}

}  // namespace

absl::StatusOr<const CudaModule*> LoadCudaModule() {
  static const auto* const loaded = new absl::StatusOr<const CudaModule*>([]() -> absl::StatusOr<const CudaModule*> {
    ASSIGN_OR_RETURN(void* const entry, LoadFunction("libsmt_cuda.so", RTLD_LOCAL, SMT_CUDA_ENTRY));
    const CudaModule* const module = reinterpret_cast<SmtCudaEntry>(entry)(SMT_CUDA_ABI_VERSION);
    if (module == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("libsmt_cuda.so has another ABI version than this program's, ", SMT_CUDA_ABI_VERSION));
    }
    return module;
  }());
  return *loaded;
}

absl::StatusOr<std::string> LoadTorchCudaPlugin(int index) {
  static std::mutex mutex;
  static SmtTorchCudaOpen open = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (open == nullptr) {
    // Global, because LibTorch's own libraries find each other's symbols that way.
    ASSIGN_OR_RETURN(void* const found, LoadFunction("libsmt_torch_cuda.so", RTLD_GLOBAL, SMT_TORCH_CUDA_OPEN));
    open = reinterpret_cast<SmtTorchCudaOpen>(found);
  }
  char message[512] = "";
  switch (open(SMT_TORCH_CUDA_ABI_VERSION, index, message, sizeof(message))) {
    case 0:
      return std::string(message);
    case 1:
      return absl::FailedPreconditionError(message);
    case 4:
      return absl::InvalidArgumentError(message);
    default:
      return absl::UnavailableError(message);
  }
}

}  // namespace smt
