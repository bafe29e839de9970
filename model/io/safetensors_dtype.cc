#include "model/io/safetensors_dtype.h"

#include <cstddef>
#include <string>

namespace smt {
namespace {

struct Row {
  std::string_view name;
  int bits;
};
// Indexed by SafetensorsDType.
constexpr Row kRows[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},    {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16}, {"BF16", 16}, {"I32", 32},
    {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},    {"I64", 64}, {"U64", 64},
};
constexpr size_t kCount = sizeof(kRows) / sizeof(kRows[0]);
static_assert(kCount == static_cast<size_t>(SafetensorsDType::kU64) + 1);

}  // namespace

std::string_view Name(SafetensorsDType dtype) { return kRows[static_cast<size_t>(dtype)].name; }

int BitsPerElement(SafetensorsDType dtype) { return kRows[static_cast<size_t>(dtype)].bits; }

std::optional<SafetensorsDType> ParseSafetensorsDType(std::string_view name) {
  for (size_t i = 0; i < kCount; ++i) {
    if (kRows[i].name == name) return static_cast<SafetensorsDType>(i);
  }
  return std::nullopt;
}

std::string_view AllSafetensorsDTypes() {
  static const std::string all = [] {
    std::string text;
    for (const Row& row : kRows) text += (text.empty() ? "" : ", ") + std::string(row.name);
    return text;
  }();
  return all;
}

}  // namespace smt
