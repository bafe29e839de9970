// A strict reader over nlohmann's streaming (SAX) parser, which is iterative: deep JSON costs no stack. A tree would
// hide duplicate keys and take many times the header's memory.
#include "model/io/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"

namespace smt {
namespace {

constexpr size_t kMaxDimensions = 64;
constexpr int kMaxUnknownDepth = 16;  // of a field that we skip
constexpr std::string_view kMetadata = "__metadata__";

class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderHandler(std::vector<TensorInfo>* tensors, std::map<std::string, std::string>* metadata)
      : tensors_(tensors), metadata_(metadata) {}

  const std::string& error() const { return error_; }

  bool null() override { return Scalar("null"); }
  bool boolean(bool value) override { return Scalar(value ? "true" : "false"); }
  bool number_float(number_float_t, const string_t& text) override { return Scalar(text); }
  bool number_integer(number_integer_t value) override { return Scalar(absl::StrCat(value)); }
  bool binary(binary_t&) override { return Scalar("binary"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Scalar(absl::StrCat(value));
      if (tensor_.shape.size() == kMaxDimensions) {
        return Fail(StrCat(Here(), " has more than ", kMaxDimensions, " dimensions"));
      }
      tensor_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (offsets_ == 2) return Fail(StrCat(Here(), " has more than two numbers; allowed is [begin, end]"));
      (offsets_++ == 0 ? tensor_.begin : tensor_.end) = value;
      return true;
    }
    return Scalar(absl::StrCat(value));
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) {
      (*metadata_)[key_] = std::move(value);
      return true;
    }
    if (state_ == State::kTensor && key_ == "dtype") {
      const std::optional<SafetensorsDType> dtype = ParseSafetensorsDType(value);
      if (!dtype) return Fail(StrCat(Here(), " is ", QuoteForMessage(value), "; allowed are ", AllSafetensorsDTypes()));
      tensor_.dtype = *dtype;
      return true;
    }
    return Scalar(QuoteForMessage(value));
  }

  bool start_object(std::size_t) override {
    if (unknown_depth_ > 0 || IsUnknownField()) return EnterUnknown();
    if (state_ == State::kStart) {
      state_ = State::kTop;
      return true;
    }
    if (state_ != State::kTop) return Scalar("an object");
    fields_ = 0;
    if (key_ == kMetadata) {
      state_ = State::kMetadata;
    } else {
      state_ = State::kTensor;
      tensor_ = TensorInfo();
      tensor_.name = key_;
      offsets_ = 0;
    }
    return true;
  }

  bool key(string_t& value) override {
    if (unknown_depth_ > 0) return true;
    key_ = std::move(value);
    if (state_ == State::kTop) {
      if (!names_.insert(key_).second) return Fail(StrCat("tensor ", QuoteForMessage(key_), " is named twice"));
    } else if (state_ == State::kMetadata) {
      if (metadata_->count(key_) > 0) return Fail(StrCat(Here(), " is given twice"));
    } else if (const int bit = FieldBit(key_); bit != 0) {
      if ((fields_ & bit) != 0) return Fail(StrCat(Here(), " is given twice"));
      fields_ |= bit;
    }
    return true;
  }

  bool end_object() override {
    if (unknown_depth_ > 0) {
      --unknown_depth_;
      return true;
    }
    if (state_ == State::kTop) {
      state_ = State::kStart;
      return true;
    }
    if (state_ == State::kTensor) {
      for (const std::string_view field : {"dtype", "shape", "data_offsets"}) {
        if ((fields_ & FieldBit(field)) == 0) {
          return Fail(StrCat("tensor ", QuoteForMessage(tensor_.name), ": ", field, " is missing"));
        }
      }
      tensors_->push_back(std::move(tensor_));
    }
    state_ = State::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (unknown_depth_ > 0 || IsUnknownField()) return EnterUnknown();
    if (state_ == State::kTensor && key_ == "shape") {
      state_ = State::kShape;
    } else if (state_ == State::kTensor && key_ == "data_offsets") {
      state_ = State::kOffsets;
    } else {
      return Scalar("an array");
    }
    return true;
  }

  bool end_array() override {
    if (unknown_depth_ > 0) {
      --unknown_depth_;
      return true;
    }
    if (state_ == State::kOffsets && offsets_ != 2) {
      return Fail(StrCat(Here(), " has ", offsets_, " numbers; allowed is [begin, end]"));
    }
    state_ = State::kTensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& exception) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 9: …": the tag is no use to people.
    std::string_view what = exception.what();
    what.remove_prefix(std::min(what.size(), what.find("] ") + 2));
    return Fail(
        StrCat("header is not JSON, at its byte ", position, ": ", absl::CHexEscape(ToAbsl(what.substr(0, 256)))));
  }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets };

  static int FieldBit(std::string_view field) {
    return field == "dtype" ? 1 : field == "shape" ? 2 : field == "data_offsets" ? 4 : 0;
  }

  bool IsUnknownField() const { return state_ == State::kTensor && FieldBit(key_) == 0; }

  bool EnterUnknown() {
    if (++unknown_depth_ > kMaxUnknownDepth) {
      return Fail(StrCat(Here(), " is nested deeper than ", kMaxUnknownDepth, " levels"));
    }
    return true;
  }

  // A value where the format has none of its kind; fields that the format does not know may hold anything.
  bool Scalar(std::string_view value) {
    if (unknown_depth_ > 0 || IsUnknownField()) return true;
    const std::string shown = value.size() > 80 ? StrCat(value.substr(0, 80), "…") : std::string(value);
    return Fail(StrCat(Here(), " is ", shown, "; allowed is ", Allowed()));
  }

  std::string_view Allowed() const {
    switch (state_) {
      case State::kStart:
      case State::kTop:
        return "an object";
      case State::kMetadata:
        return "a string";
      case State::kShape:
        return "a list of whole numbers from 0 to 2^63 - 1";
      case State::kOffsets:
        return "[begin, end], two whole numbers from 0 to 2^64 - 1";
      case State::kTensor:
        break;
    }
    if (key_ == "dtype") return "a string";
    return key_ == "shape" ? "a list of whole numbers" : "[begin, end]";
  }

  // Where the parser stands, for messages.
  std::string Here() const {
    switch (state_) {
      case State::kStart:
        return "header";
      case State::kTop:
        return key_ == kMetadata ? std::string(kMetadata) : StrCat("tensor ", QuoteForMessage(key_));
      case State::kMetadata:
        return StrCat(kMetadata, " ", QuoteForMessage(key_));
      default:
        return StrCat("tensor ", QuoteForMessage(tensor_.name), ": ",
                      FieldBit(key_) != 0 ? key_ : StrCat("field ", QuoteForMessage(key_)));
    }
  }

  bool Fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
    return false;
  }

  std::vector<TensorInfo>* const tensors_;
  std::map<std::string, std::string>* const metadata_;
  State state_ = State::kStart;
  std::string key_;              // the last one read at a level that we look at
  std::set<std::string> names_;  // keys of the top level so far
  TensorInfo tensor_;            // the one being read
  int fields_ = 0;               // FieldBits seen of it
  int offsets_ = 0;              // numbers of data_offsets seen
  int unknown_depth_ = 0;        // open brackets inside a field that is skipped
  std::string error_;
};

std::string OffsetsToString(const TensorInfo& tensor) { return StrCat("[", tensor.begin, ", ", tensor.end, "]"); }

// Sorts by offset, and checks each size and that the data is tiled without gaps up to `data_size`.
absl::Status CheckOffsets(uint64_t data_size, std::vector<TensorInfo>* tensors) {
  for (TensorInfo& tensor : *tensors) {
    const std::string name = StrCat("tensor ", QuoteForMessage(tensor.name));
    ASSIGN_OR_RETURN(const TensorSize size, CheckedTensorSize(name, tensor.dtype, tensor.shape));
    tensor.elements = size.elements;
    if (tensor.begin > tensor.end) {
      return absl::InvalidArgumentError(
          StrCat(name, ": data_offsets is ", OffsetsToString(tensor), "; begin may not be past end"));
    }
    if (tensor.end - tensor.begin != size.bytes) {
      return absl::InvalidArgumentError(StrCat(name, ": data_offsets ", OffsetsToString(tensor), " hold ",
                                               tensor.end - tensor.begin, " bytes, but dtype ", Name(tensor.dtype),
                                               " with shape ", ShapeToString(tensor.shape), " takes ", size.bytes));
    }
    if (tensor.end > data_size) {
      return absl::DataLossError(StrCat(name, ": data_offsets ", OffsetsToString(tensor), " end past the file's ",
                                        data_size, " bytes of data; the file is truncated or damaged"));
    }
  }
  std::stable_sort(tensors->begin(), tensors->end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  std::string_view previous;
  for (const TensorInfo& tensor : *tensors) {
    if (tensor.begin < covered) {
      return absl::InvalidArgumentError(StrCat("tensor ", QuoteForMessage(tensor.name), ": data_offsets ",
                                               OffsetsToString(tensor), " overlap those of tensor ",
                                               QuoteForMessage(previous), ", which end at ", covered));
    }
    if (tensor.begin > covered) {
      return absl::InvalidArgumentError(StrCat("tensor ", QuoteForMessage(tensor.name), ": data_offsets ",
                                               OffsetsToString(tensor), " leave a gap; what comes before ends at ",
                                               covered));
    }
    covered = tensor.end;
    previous = tensor.name;
  }
  if (covered != data_size) {
    return absl::DataLossError(StrCat("the tensors end at byte ", covered, " of the data, but the file holds ",
                                      data_size, "; nothing may follow them"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string QuoteForMessage(std::string_view name) {
  return StrCat("'", absl::CHexEscape(ToAbsl(name.substr(0, 64))), name.size() > 64 ? "…" : "", "'");
}

std::string ShapeToString(const std::vector<int64_t>& shape) { return StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::StatusOr<TensorSize> CheckedTensorSize(std::string_view what, SafetensorsDType dtype,
                                             const std::vector<int64_t>& shape) {
  if (shape.size() > kMaxDimensions) {
    return absl::InvalidArgumentError(
        StrCat(what, ": shape has ", shape.size(), " dimensions; at most ", kMaxDimensions, " are allowed"));
  }
  // Zeros are left out, so that an empty tensor's strides cannot overflow either.
  int64_t bits = BitsPerElement(dtype), elements = 1;
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) {
      return absl::InvalidArgumentError(StrCat(what, ": shape ", ShapeToString(shape), " has a negative size"));
    }
    if (size == 0) {
      empty = true;
      continue;
    }
    if (__builtin_mul_overflow(bits, size, &bits)) {
      return absl::InvalidArgumentError(
          StrCat(what, ": shape ", ShapeToString(shape), " of ", Name(dtype), " takes more than 2^63 - 1 bits"));
    }
    elements *= size;  // at most `bits`
  }
  if (empty) return TensorSize{};
  if (bits % 8 != 0) {
    return absl::InvalidArgumentError(
        StrCat(what, ": shape ", ShapeToString(shape), " of ", Name(dtype), " does not fill whole bytes"));
  }
  return TensorSize{.elements = elements, .bytes = static_cast<uint64_t>(bits) / 8};
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view file) {
  if (file.size() < 8) {
    return absl::DataLossError(StrCat("the file has ", file.size(), " bytes; a safetensors file has at least 8"));
  }
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= static_cast<uint64_t>(static_cast<unsigned char>(file[i])) << (8 * i);
  if (length > kMaxSafetensorsHeader) {
    return absl::InvalidArgumentError(StrCat("the header's length is ", length, "; at most ", kMaxSafetensorsHeader,
                                             " is allowed (is this a safetensors file?)"));
  }
  if (length > file.size() - 8) {
    return absl::DataLossError(
        StrCat("the header's length is ", length, ", but only ", file.size() - 8, " bytes follow it"));
  }
  const std::string_view text = file.substr(8, length);
  if (text.empty() || text[0] != '{') return absl::InvalidArgumentError("the header does not begin with '{'");

  // The parser takes a zero byte for the end of its input, and would not look at what follows.
  if (const size_t zero = text.find('\0'); zero != std::string_view::npos) {
    return absl::InvalidArgumentError(StrCat("header is not JSON, at its byte ", zero + 1, ": a zero byte"));
  }

  SafetensorsHeader header;
  header.data_begin = 8 + length;
  HeaderHandler handler(&header.tensors, &header.metadata);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &handler)) {
    return absl::InvalidArgumentError(handler.error());
  }
  RETURN_IF_ERROR(CheckOffsets(file.size() - header.data_begin, &header.tensors));
  return header;
}

}  // namespace smt
