#include "model/io/safetensors.h"

#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/io/float_bits.h"
#include "model/io/mapped_file.h"

namespace smt {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are little-endian in files and read as they are");

// Calls set(i, element i) for stored elements of type T, wherever they lie.
template <typename T, typename Set>
void ForEach(std::string_view bytes, Set set) {
  const size_t count = bytes.size() / sizeof(T);
  for (size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    set(i, value);
  }
}

}  // namespace

absl::StatusOr<SafetensorsReader> SafetensorsReader::Parse(std::string_view bytes, std::shared_ptr<const void> owner,
                                                           std::string_view source) {
  auto contents = std::make_shared<Contents>();
  contents->source = std::string(source);
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(bytes);
  if (!header.ok()) {
    return absl::Status(header.status().code(), StrCat(source, ": ", std::string(header.status().message())));
  }
  contents->header = *std::move(header);
  for (size_t i = 0; i < contents->header.tensors.size(); ++i) {
    contents->index.emplace(contents->header.tensors[i].name, i);
  }
  contents->data = bytes.substr(contents->header.data_begin);
  contents->owner = std::move(owner);
  return SafetensorsReader(std::move(contents));
}

absl::StatusOr<SafetensorsReader> SafetensorsReader::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile opened, MappedFile::Open(path));
  auto file = std::make_shared<const MappedFile>(std::move(opened));
  return Parse(file->bytes(), file, path);
}

absl::StatusOr<SafetensorsReader> SafetensorsReader::FromBytes(std::string_view bytes, std::string_view name) {
  return Parse(bytes, nullptr, name);
}

absl::StatusOr<SafetensorsReader> SafetensorsReader::FromString(std::string bytes, std::string_view name) {
  auto owned = std::make_shared<const std::string>(std::move(bytes));
  return Parse(*owned, owned, name);
}

const TensorInfo* SafetensorsReader::Find(std::string_view name) const {
  const auto found = contents_->index.find(name);
  return found == contents_->index.end() ? nullptr : &tensors()[found->second];
}

absl::StatusOr<const TensorInfo*> SafetensorsReader::Get(std::string_view name) const {
  if (const TensorInfo* tensor = Find(name)) return tensor;
  return absl::NotFoundError(
      StrCat(source(), ": has no tensor ", QuoteForMessage(name), " among its ", tensors().size()));
}

absl::StatusOr<const TensorInfo*> SafetensorsReader::Get(std::string_view name,
                                                         const std::vector<int64_t>& shape) const {
  ASSIGN_OR_RETURN(const TensorInfo* tensor, Get(name));
  if (tensor->shape == shape) return tensor;
  return absl::InvalidArgumentError(StrCat(source(), ": tensor ", QuoteForMessage(name), " has shape ",
                                           ShapeToString(tensor->shape), "; required is ", ShapeToString(shape)));
}

std::string_view SafetensorsReader::Bytes(const TensorInfo& tensor) const {
  return contents_->data.substr(tensor.begin, tensor.end - tensor.begin);
}

absl::StatusOr<std::string_view> SafetensorsReader::Bytes(std::string_view name) const {
  ASSIGN_OR_RETURN(const TensorInfo* tensor, Get(name));
  return Bytes(*tensor);
}

absl::StatusOr<std::vector<float>> SafetensorsReader::ReadFloat32(std::string_view name) const {
  ASSIGN_OR_RETURN(const TensorInfo* tensor, Get(name));
  std::vector<float> values(static_cast<size_t>(tensor->elements));
  RETURN_IF_ERROR(ReadFloat32(*tensor, absl::MakeSpan(values)));
  return values;
}

absl::Status SafetensorsReader::ReadFloat32(const TensorInfo& tensor, absl::Span<float> out) const {
  if (out.size() != static_cast<size_t>(tensor.elements)) {
    return absl::InvalidArgumentError(StrCat(source(), ": tensor ", QuoteForMessage(tensor.name), " has ",
                                             tensor.elements, " elements, but there is room for ", out.size()));
  }
  const std::string_view bytes = Bytes(tensor);
  switch (tensor.dtype) {
    case SafetensorsDType::kF32:
      if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
      return absl::OkStatus();
    case SafetensorsDType::kF16:
      ForEach<uint16_t>(bytes, [&](size_t i, uint16_t bits) { out[i] = Float16ToFloat(bits); });
      return absl::OkStatus();
    case SafetensorsDType::kBF16:
      ForEach<uint16_t>(bytes, [&](size_t i, uint16_t bits) { out[i] = BFloat16ToFloat(bits); });
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(StrCat(source(), ": tensor ", QuoteForMessage(tensor.name), " has dtype ",
                                               Name(tensor.dtype), "; allowed are F32, F16 and BF16"));
  }
}

absl::StatusOr<std::vector<int64_t>> SafetensorsReader::ReadInt64(std::string_view name) const {
  ASSIGN_OR_RETURN(const TensorInfo* tensor, Get(name));
  std::vector<int64_t> values(static_cast<size_t>(tensor->elements));
  const auto set = [&](size_t i, int64_t value) { values[i] = value; };
  const std::string_view bytes = Bytes(*tensor);
  switch (tensor->dtype) {
    case SafetensorsDType::kI64:
      ForEach<int64_t>(bytes, set);
      return values;
    case SafetensorsDType::kI32:
      ForEach<int32_t>(bytes, set);
      return values;
    case SafetensorsDType::kU8:
      ForEach<uint8_t>(bytes, set);
      return values;
    default:
      return absl::InvalidArgumentError(StrCat(source(), ": tensor ", QuoteForMessage(name), " has dtype ",
                                               Name(tensor->dtype), "; allowed are I64, I32 and U8"));
  }
}

absl::StatusOr<std::vector<int32_t>> SafetensorsReader::ReadInt32(std::string_view name) const {
  ASSIGN_OR_RETURN(const std::vector<int64_t> wide, ReadInt64(name));
  std::vector<int32_t> values;
  values.reserve(wide.size());
  for (const int64_t value : wide) {
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(StrCat(source(), ": tensor ", QuoteForMessage(name), " holds ", value,
                                               " at index ", values.size(), "; allowed is the range of int32"));
    }
    values.push_back(static_cast<int32_t>(value));
  }
  return values;
}

}  // namespace smt
