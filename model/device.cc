#include "model/device.h"

#include <charconv>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/cuda/abi.h"
#include "model/cuda_plugin.h"

namespace smt {

absl::StatusOr<DeviceChoice> ParseDevice(std::string_view text) {
  if (text == "auto") return DeviceChoice{DeviceChoice::Kind::kAuto, 0};
  if (text == "cpu") return DeviceChoice{DeviceChoice::Kind::kCpu, 0};
  if (text == "cuda") return DeviceChoice{DeviceChoice::Kind::kCuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  if (text.starts_with(kPrefix)) {
    const std::string_view digits = text.substr(kPrefix.size());
    int index = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error == std::errc() && end == digits.data() + digits.size() && index >= 0 && index < 128) {
      return DeviceChoice{DeviceChoice::Kind::kCuda, index};
    }
  }
  return absl::InvalidArgumentError(StrCat("device is \"", text.substr(0, 64), "\"; allowed: auto, cpu, cuda, cuda:N"));
}

absl::StatusOr<Device> ResolveDevice(std::string_view text) {
  ASSIGN_OR_RETURN(const DeviceChoice choice, ParseDevice(text));
  const Device cpu = {.name = "cpu", .description = "cpu", .note = ""};
  if (choice.kind == DeviceChoice::Kind::kCpu) return cpu;
  const absl::StatusOr<std::string> gpu = LoadTorchCudaPlugin(choice.index);
  if (gpu.ok()) {
    const std::string name = StrCat("cuda:", choice.index);
    return Device{.name = name, .description = StrCat(name, " ", *gpu), .note = ""};
  }
  if (choice.kind == DeviceChoice::Kind::kCuda) {
    return absl::Status(gpu.status().code(), StrCat("device ", text, ": ", gpu.status().message()));
  }
  Device device = cpu;
  device.note = std::string(gpu.status().message());
  return device;
}

absl::StatusOr<Device> ResolveServingDevice(std::string_view text) {
  ASSIGN_OR_RETURN(const DeviceChoice choice, ParseDevice(text));
  if (choice.kind == DeviceChoice::Kind::kCpu) return ResolveDevice(text);
  const absl::StatusOr<const CudaModule*> module = LoadCudaModule();
  if (!module.ok()) return ResolveDevice(text);
  const absl::StatusOr<std::string> gpu = (*module)->open(choice.index);
  if (gpu.ok()) {
    const std::string name = StrCat("cuda:", choice.index);
    return Device{.name = name, .description = StrCat(name, " ", *gpu), .note = "", .kernels = true};
  }
  if (choice.kind == DeviceChoice::Kind::kCuda) {
    return absl::Status(gpu.status().code(), StrCat("device ", text, ": ", gpu.status().message()));
  }
  return Device{.name = "cpu", .description = "cpu", .note = std::string(gpu.status().message())};
}

}  // namespace smt
