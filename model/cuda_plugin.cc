#include "model/cuda_plugin.h"

#include <dlfcn.h>

#include <filesystem>
#include <mutex>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/torch_cuda/abi.h"

namespace smt {
namespace {

constexpr char kModule[] = "libsmt_torch_cuda.so";

absl::StatusOr<SmtTorchCudaOpen> LoadModule() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot read /proc/self/exe: ", error.message()));
  const std::filesystem::path folder = program.parent_path();
  for (const std::filesystem::path& path : {folder / kModule, folder.parent_path() / "lib" / kModule}) {
    if (!std::filesystem::exists(path, error)) continue;
    // Global, because LibTorch's own libraries find each other's symbols that way; never unloaded.
    void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (module == nullptr) {
      const char* why = dlerror();
      return absl::UnavailableError(
          absl::StrCat("cannot load ", path.string(), ": ", why == nullptr ? "unknown error" : why));
    }
    const auto open = reinterpret_cast<SmtTorchCudaOpen>(dlsym(module, SMT_TORCH_CUDA_OPEN));
    if (open == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(path.string(), " has no ", SMT_TORCH_CUDA_OPEN));
    }
    return open;
  }
  return absl::UnavailableError(absl::StrCat("this build has no CUDA support: ", kModule, " is neither in ",
                                             folder.string(), " nor in its ../lib"));
}

}  // namespace

absl::StatusOr<std::string> LoadTorchCudaPlugin(int index) {
  static std::mutex mutex;
  static SmtTorchCudaOpen open = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (open == nullptr) {
    ASSIGN_OR_RETURN(open, LoadModule());
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
