// Element types of the safetensors format.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace smt {

// In the format's own order, by which writers sort tensors (widest first) so that all data is aligned.
enum class SafetensorsDType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

std::string_view Name(SafetensorsDType dtype);  // as in files: "F32", "BF16", …
std::optional<SafetensorsDType> ParseSafetensorsDType(std::string_view name);
int BitsPerElement(SafetensorsDType dtype);  // 4 and 6 for the packed types
std::string_view AllSafetensorsDTypes();     // "BOOL, F4, …", for messages

}  // namespace smt
