// Headers of safetensors files: as they are, and as a text that gets its length before it and zeros after it.
#include "model/io/safetensors_header.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

void Parse(std::string_view file) {
  const auto header = ParseSafetensorsHeader(file);
  if (!header.ok()) {
    FUZZ_CHECK(absl::IsDataLoss(header.status()) || absl::IsInvalidArgument(header.status()));
    FUZZ_CHECK(header.status().message().size() < 4096);
    return;
  }
  uint64_t end = 0;
  for (const TensorInfo& tensor : header->tensors) {
    FUZZ_CHECK(tensor.begin == end && tensor.end >= tensor.begin);
    end = tensor.end;
    const auto size = CheckedTensorSize("", tensor.dtype, tensor.shape);
    FUZZ_CHECK(size.ok() && size->bytes == tensor.end - tensor.begin && size->elements == tensor.elements);
  }
  FUZZ_CHECK(header->data_begin + end == file.size());
}

void Run(std::string_view bytes) {
  Parse(bytes);
  Input in(bytes);
  const size_t data = in.Byte();
  const uint64_t length = in.Rest().size();
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(length >> (8 * i)));
  file.append(in.Rest());
  file.append(data, '\0');
  Parse(file);
}

std::vector<std::string> Seeds() {
  const std::string text =
      R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"e":{"dtype":"I64","shape":[0],"data_offsets":[14,14]},)"
      R"("s":{"dtype":"U8","shape":[],"data_offsets":[14,15],"unknown":[{"x":null}]}})";
  std::string file(8, '\0');
  file[0] = 2;
  return {"\x0f" + text, file + "{}", "\x01{\"f\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]}}"};
}

}  // namespace

extern const FuzzTarget safetensors_target;
const FuzzTarget safetensors_target = {"safetensors", Run, Seeds};

}  // namespace smt::fuzz
