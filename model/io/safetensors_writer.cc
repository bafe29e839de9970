#include "model/io/safetensors_writer.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_join.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/io/atomic_file.h"
#include "model/io/float_bits.h"

namespace smt {
namespace {

template <typename T>
std::string_view AsBytes(absl::Span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// A JSON string; INVALID_ARGUMENT if `text` is not UTF-8.
absl::StatusOr<std::string> JsonString(std::string_view what, std::string_view text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    return absl::InvalidArgumentError(StrCat(what, " ", QuoteForMessage(text), " is not UTF-8"));
  }
}

}  // namespace

absl::Status SafetensorsWriter::SetMetadata(std::string_view key, std::string_view value) {
  RETURN_IF_ERROR(JsonString("metadata key", key).status());
  RETURN_IF_ERROR(JsonString(StrCat("metadata ", QuoteForMessage(key)), value).status());
  metadata_.insert_or_assign(std::string(key), std::string(value));
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::AddEntry(std::string_view name, SafetensorsDType dtype,
                                         const std::vector<int64_t>& shape, std::string_view bytes, Producer produce) {
  RETURN_IF_ERROR(JsonString("tensor", name).status());
  const std::string what = StrCat("tensor ", QuoteForMessage(name));
  if (name == "__metadata__") return absl::InvalidArgumentError(StrCat(what, ": the name is reserved"));
  if (entries_.contains(name)) return absl::InvalidArgumentError(StrCat(what, " is added twice"));
  ASSIGN_OR_RETURN(const TensorSize size, CheckedTensorSize(what, dtype, shape));
  if (!produce && bytes.size() != size.bytes) {
    return absl::InvalidArgumentError(StrCat(what, ": dtype ", Name(dtype), " with shape ", ShapeToString(shape),
                                             " takes ", size.bytes, " bytes, but ", bytes.size(), " are given"));
  }
  entries_.emplace(std::string(name), Entry{.info = {.name = std::string(name),
                                                     .dtype = dtype,
                                                     .shape = shape,
                                                     .elements = size.elements,
                                                     .end = size.bytes},
                                            .bytes = bytes,
                                            .produce = std::move(produce)});
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Add(std::string_view name, SafetensorsDType dtype, const std::vector<int64_t>& shape,
                                    std::string_view bytes) {
  return AddEntry(name, dtype, shape, bytes, nullptr);
}

absl::Status SafetensorsWriter::AddFloat32(std::string_view name, const std::vector<int64_t>& shape,
                                           absl::Span<const float> values) {
  return Add(name, SafetensorsDType::kF32, shape, AsBytes(values));
}

absl::Status SafetensorsWriter::AddInt32(std::string_view name, const std::vector<int64_t>& shape,
                                         absl::Span<const int32_t> values) {
  return Add(name, SafetensorsDType::kI32, shape, AsBytes(values));
}

absl::Status SafetensorsWriter::AddInt64(std::string_view name, const std::vector<int64_t>& shape,
                                         absl::Span<const int64_t> values) {
  return Add(name, SafetensorsDType::kI64, shape, AsBytes(values));
}

absl::Status SafetensorsWriter::AddProduced(std::string_view name, SafetensorsDType dtype,
                                            const std::vector<int64_t>& shape, Producer produce) {
  return AddEntry(name, dtype, shape, {}, std::move(produce));
}

absl::Status SafetensorsWriter::WriteTo(const Sink& sink) const {
  std::vector<const Entry*> order;
  order.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(),
                   [](const Entry* a, const Entry* b) { return a->info.dtype > b->info.dtype; });

  // Written by hand: nlohmann's objects would sort the names, and what comes first shall be first in the data too.
  std::vector<std::string> fields;
  if (!metadata_.empty()) fields.push_back(StrCat("\"__metadata__\":", nlohmann::json(metadata_).dump()));
  uint64_t offset = 0;
  for (const Entry* entry : order) {
    ASSIGN_OR_RETURN(const std::string name, JsonString("tensor", entry->info.name));
    const uint64_t begin = offset, size = entry->info.end;
    if (__builtin_add_overflow(offset, size, &offset)) {
      return absl::InvalidArgumentError("the tensors take more than 2^64 bytes together");
    }
    fields.push_back(StrCat(name, ":{\"dtype\":\"", Name(entry->info.dtype), "\",\"shape\":[",
                            absl::StrJoin(entry->info.shape, ","), "],\"data_offsets\":[", begin, ",", offset, "]}"));
  }
  std::string header = StrCat("{", absl::StrJoin(fields, ","), "}");
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > kMaxSafetensorsHeader) {
    return absl::InvalidArgumentError(
        StrCat("the header takes ", header.size(), " bytes; at most ", kMaxSafetensorsHeader, " are allowed"));
  }
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  RETURN_IF_ERROR(sink(length));
  RETURN_IF_ERROR(sink(header));

  for (const Entry* entry : order) {
    if (!entry->produce) {
      RETURN_IF_ERROR(sink(entry->bytes));
      continue;
    }
    ASSIGN_OR_RETURN(const std::string bytes, entry->produce());
    if (bytes.size() != entry->info.end) {
      return absl::InvalidArgumentError(StrCat("tensor ", QuoteForMessage(entry->info.name), " takes ", entry->info.end,
                                               " bytes, but ", bytes.size(), " were produced"));
    }
    RETURN_IF_ERROR(sink(bytes));
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::WriteFile(const std::string& path) const {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  RETURN_IF_ERROR(WriteTo([&](std::string_view bytes) { return file.Append(bytes); }));
  return file.Commit();
}

absl::StatusOr<std::string> SafetensorsWriter::ToString() const {
  std::string out;
  size_t size = 0;
  for (const auto& [name, entry] : entries_) size += entry.info.end;
  out.reserve(size + 256 * (entries_.size() + 1));
  RETURN_IF_ERROR(WriteTo([&](std::string_view bytes) {
    out.append(bytes);
    return absl::OkStatus();
  }));
  return out;
}

absl::StatusOr<std::string> EncodeFloats(SafetensorsDType dtype, absl::Span<const float> values) {
  if (dtype == SafetensorsDType::kF32) return std::string(AsBytes(values));
  if (dtype != SafetensorsDType::kF16 && dtype != SafetensorsDType::kBF16) {
    return absl::InvalidArgumentError(StrCat("dtype is ", Name(dtype), "; allowed are F32, F16 and BF16"));
  }
  std::string bytes(values.size() * 2, '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = dtype == SafetensorsDType::kF16 ? FloatToFloat16(values[i]) : FloatToBFloat16(values[i]);
    std::memcpy(bytes.data() + 2 * i, &bits, 2);
  }
  return bytes;
}

}  // namespace smt
