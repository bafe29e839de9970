#include "server/session/session_file.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "model/base/sha256.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/io/safetensors.h"
#include "model/io/safetensors_writer.h"
#include "model/state_layout.h"
#include "server/base/status_details.h"

namespace smt {
namespace {

constexpr std::string_view kFormat = "smt-session";
constexpr std::string_view kLog = "log";

// Keys of the metadata.
constexpr std::string_view kFormatKey = "format";
constexpr std::string_view kVersionKey = "format_version";
constexpr std::string_view kOriginKey = "origin";
constexpr std::string_view kPositionKey = "position";
constexpr std::string_view kBranchKey = "branch";
constexpr std::string_view kCreateTimeKey = "create_time";
constexpr std::string_view kModelKey = "model_fingerprint";
constexpr std::string_view kLogDigestKey = "log_digest";
constexpr std::string_view kStatePositionKey = "state_position";  // this and what follows: only with a state
constexpr std::string_view kNumericsKey = "numerics_id";
constexpr std::string_view kStateDigestKey = "state_digest";
constexpr std::string_view kMetadataDigestKey = "metadata_digest";  // of all the others

using Metadata = std::map<std::string, std::string>;

// One tensor of the state and where its bytes are in a StateBuffer.
template <typename Byte>
struct Part {
  std::string_view name;
  SafetensorsDType dtype = SafetensorsDType::kF32;
  std::vector<int64_t> shape;
  std::span<Byte> bytes;
};

template <typename Byte, typename T>
std::span<Byte> BytesOf(std::span<T> values) {
  return {reinterpret_cast<Byte*>(values.data()), values.size_bytes()};
}

// The tensors of a state, in the order of model/state_layout.h. `Byte` is std::byte, const to read.
template <typename Byte>
std::vector<Part<Byte>> StateParts(const StrideHybridConfig& c, std::span<Byte> state) {
  const StateLayout layout(c);
  const bool mamba = c.ssm.kind == SsmKind::kMamba;
  std::vector<Part<Byte>> parts;
  parts.push_back({"state.position", SafetensorsDType::kI64, {}, state.first(sizeof(int64_t))});
  parts.push_back({"state.tokens", SafetensorsDType::kI32, {c.m_input_tokens}, BytesOf<Byte>(layout.tokens(state))});
  parts.push_back(
      {"state.memory", SafetensorsDType::kF32, {c.n_ssm_outputs, c.d_model}, BytesOf<Byte>(layout.memory(state))});
  if (mamba) {
    parts.push_back({"state.ssm.conv",
                     SafetensorsDType::kF32,
                     {c.ssm.n_layer, c.d_inner(), c.ssm.d_conv},
                     BytesOf<Byte>(layout.conv(state))});
  }
  std::vector<int64_t> shape = {c.ssm.n_layer, c.d_model};
  if (mamba) shape = {c.ssm.n_layer, c.d_inner(), c.ssm.d_state};
  parts.push_back({"state.ssm.state", SafetensorsDType::kF32, std::move(shape), BytesOf<Byte>(layout.state(state))});
  return parts;
}

template <typename T>
std::string_view Chars(std::span<T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

std::string DigestOf(std::string_view bytes) {
  Sha256 sha;
  sha.Add(bytes);
  return sha.HexDigest();
}

std::string DigestOf(const Metadata& metadata) {
  Sha256 sha;
  for (const auto& [key, value] : metadata) {
    if (key == kMetadataDigestKey) continue;
    sha.AddPiece(key);
    sha.AddPiece(value);
  }
  return sha.HexDigest();
}

absl::Status CheckContent(const StrideHybridConfig& config, const SessionContent& content) {
  const auto contradiction = [&](const auto&... what) {
    return absl::InternalError(StrCat("session '", content.info.id, "' cannot be written to a file: ", what...));
  };
  const auto log = static_cast<int64_t>(content.log.size());
  if (log != content.info.position) return contradiction("it has ", log, " ids for position ", content.info.position);
  if (content.state == nullptr) return absl::OkStatus();
  const StateLayout layout(config);
  const std::span<const std::byte> state = content.state->span();
  if (state.size() != layout.bytes()) {
    return contradiction("its state has ", state.size(), " bytes, the model's states have ", layout.bytes());
  }
  if (layout.position(state) != content.state_position) {
    return contradiction("its state says position ", layout.position(state), ", its owner ", content.state_position);
  }
  if (content.state_position < 1 || content.state_position > log) {
    return contradiction("its state is at position ", content.state_position, ", its log ends at ", log);
  }
  // What lies between the tensors is not written.
  StateBuffer again(state.size());
  std::memset(again.span().data(), 0, again.size());
  const auto from = StateParts(config, state);
  const auto to = StateParts(config, again.span());
  for (size_t i = 0; i < from.size(); ++i) std::ranges::copy(from[i].bytes, to[i].bytes.begin());
  if (std::memcmp(again.span().data(), state.data(), state.size()) != 0) {
    return contradiction("its state has bytes other than 0 between its parts");
  }
  return absl::OkStatus();
}

Metadata MetadataOf(const SessionContent& content) {
  Metadata metadata;
  const auto set = [&](std::string_view key, std::string value) { metadata[std::string(key)] = std::move(value); };
  set(kFormatKey, std::string(kFormat));
  set(kVersionKey, StrCat(kSessionFileVersion));
  set(kOriginKey, StrCat("sessions/", content.info.id));
  set(kPositionKey, StrCat(content.info.position));
  set(kBranchKey, StrCat(content.info.branch));
  set(kCreateTimeKey, absl::FormatTime(absl::RFC3339_full, content.info.create_time, absl::UTCTimeZone()));
  set(kModelKey, content.info.model_fingerprint);
  set(kLogDigestKey, DigestOf(Chars(std::span(content.log))));
  if (content.state != nullptr) {
    set(kStatePositionKey, StrCat(content.state_position));
    set(kNumericsKey, content.numerics_id);
    set(kStateDigestKey, DigestOf(Chars(content.state->span())));
  }
  set(kMetadataDigestKey, DigestOf(metadata));
  return metadata;
}

// Reads one file; a member for each concern.
class Decoder {
 public:
  Decoder(const StrideHybridConfig& config, SafetensorsReader file)
      : config_(config), layout_(config), file_(std::move(file)) {
    if (!file_.metadata().contains(std::string(kStatePositionKey))) return;
    state_ = std::make_shared<StateBuffer>(layout_.bytes());
    std::memset(state_->span().data(), 0, state_->size());
    parts_ = StateParts(config_, state_->span());
  }

  absl::StatusOr<SessionContent> Decode(std::string_view fingerprint) {
    RETURN_IF_ERROR(CheckFormat());
    RETURN_IF_ERROR(ReadMetadata());
    RETURN_IF_ERROR(CheckModel(fingerprint));
    RETURN_IF_ERROR(CheckTensorNames());
    RETURN_IF_ERROR(ReadLog());
    if (state_ != nullptr) RETURN_IF_ERROR(ReadState());
    return std::move(content_);
  }

 private:
  absl::Status Invalid(const auto&... what) const {
    return absl::InvalidArgumentError(StrCat(file_.source(), ": ", what...));
  }
  absl::Status Damaged(const auto&... what) const { return absl::DataLossError(StrCat(file_.source(), ": ", what...)); }

  absl::StatusOr<std::string_view> Field(std::string_view key) const {
    const auto found = file_.metadata().find(std::string(key));
    if (found == file_.metadata().end()) return Invalid("the metadata has no ", key);
    return found->second;
  }

  absl::StatusOr<int64_t> Number(std::string_view key, int64_t least, int64_t most) const {
    ASSIGN_OR_RETURN(const std::string_view text, Field(key));
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
      return Invalid("metadata ", key, " is ", QuoteForMessage(text), "; allowed is a number from ", least, " to ",
                     most);
    }
    return value;
  }

  absl::Status CheckFormat() const {
    const absl::StatusOr<std::string_view> format = Field(kFormatKey);
    if (!format.ok() || *format != kFormat) {
      return Invalid("is no session: metadata ", kFormatKey, " is ",
                     format.ok() ? QuoteForMessage(*format) : std::string("not there"), "; required is '", kFormat,
                     "'");
    }
    ASSIGN_OR_RETURN(const int64_t version, Number(kVersionKey, 1, std::numeric_limits<int64_t>::max()));
    if (version > kSessionFileVersion) {
      const std::string why = StrCat(file_.source(), ": its format version is ", version, "; versions up to ",
                                     kSessionFileVersion, " are read here");
      return WithDetails(absl::FailedPreconditionError(why),
                         {.reason = "FORMAT_VERSION", .preconditions = {{"FORMAT_VERSION", file_.source(), why}}});
    }
    ASSIGN_OR_RETURN(const std::string_view digest, Field(kMetadataDigestKey));
    if (const std::string made = DigestOf(file_.metadata()); made != digest) {
      return Damaged("the metadata's SHA-256 is ", made, ", but ", kMetadataDigestKey, " is ", QuoteForMessage(digest));
    }
    return absl::OkStatus();
  }

  absl::Status ReadMetadata() {
    SessionInfo& info = content_.info;
    ASSIGN_OR_RETURN(std::string_view origin, Field(kOriginKey));
    if (origin.starts_with("sessions/")) origin.remove_prefix(sizeof("sessions/") - 1);
    info.id = std::string(origin);
    ASSIGN_OR_RETURN(info.position, Number(kPositionKey, 0, std::numeric_limits<int64_t>::max()));
    ASSIGN_OR_RETURN(info.branch, Number(kBranchKey, 0, std::numeric_limits<int64_t>::max()));
    ASSIGN_OR_RETURN(const std::string_view created, Field(kCreateTimeKey));
    if (std::string error; !absl::ParseTime(absl::RFC3339_full, ToAbsl(created), &info.create_time, &error)) {
      return Invalid("metadata ", kCreateTimeKey, " is ", QuoteForMessage(created),
                     "; allowed is a time as in 2026-01-31T12:00:00Z");
    }
    ASSIGN_OR_RETURN(const std::string_view model, Field(kModelKey));
    info.model_fingerprint = std::string(model);
    if (state_ == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(content_.state_position, Number(kStatePositionKey, 1, std::numeric_limits<int64_t>::max()));
    if (content_.state_position > info.position) {
      return Invalid("the state is at position ", content_.state_position, ", beyond the log, which ends at ",
                     info.position);
    }
    ASSIGN_OR_RETURN(const std::string_view numerics, Field(kNumericsKey));
    content_.numerics_id = std::string(numerics);
    return absl::OkStatus();
  }

  absl::Status CheckModel(std::string_view fingerprint) const {
    if (content_.info.model_fingerprint == fingerprint) return absl::OkStatus();
    const std::string why =
        StrCat(file_.source(), ": is of the model with fingerprint ", QuoteForMessage(content_.info.model_fingerprint),
               "; this server's model has ", QuoteForMessage(fingerprint));
    return WithDetails(absl::FailedPreconditionError(why),
                       {.reason = "MODEL_MISMATCH", .preconditions = {{"MODEL", file_.source(), why}}});
  }

  absl::Status CheckTensorNames() const {
    std::vector<std::string_view> names = {kLog};
    for (const Part<std::byte>& part : parts_) names.push_back(part.name);
    for (const TensorInfo& tensor : file_.tensors()) {
      if (std::ranges::find(names, tensor.name) == names.end()) {
        return Invalid("has a tensor ", QuoteForMessage(tensor.name), "; allowed are ", StrJoin(names, ", "));
      }
    }
    for (const std::string_view name : names) {
      if (file_.Find(name) == nullptr) return Invalid("has no tensor ", name);
    }
    return absl::OkStatus();
  }

  // Where the tensor is as it should be, its bytes.
  absl::StatusOr<std::string_view> Tensor(std::string_view name, SafetensorsDType dtype,
                                          const std::vector<int64_t>& shape) const {
    const TensorInfo& tensor = *file_.Find(name);
    if (tensor.dtype != dtype || tensor.shape != shape) {
      return Invalid("tensor ", name, " is ", Name(tensor.dtype), " ", ShapeToString(tensor.shape), "; required is ",
                     Name(dtype), " ", ShapeToString(shape));
    }
    return file_.Bytes(tensor);
  }

  absl::Status CheckDigest(std::string_view key, std::string_view what, std::string_view bytes) const {
    ASSIGN_OR_RETURN(const std::string_view digest, Field(key));
    if (const std::string made = DigestOf(bytes); made != digest) {
      return Damaged("the SHA-256 of the ", what, " is ", made, ", but ", key, " is ", QuoteForMessage(digest));
    }
    return absl::OkStatus();
  }

  absl::Status ReadLog() {
    ASSIGN_OR_RETURN(const std::string_view bytes, Tensor(kLog, SafetensorsDType::kI32, {content_.info.position}));
    RETURN_IF_ERROR(CheckDigest(kLogDigestKey, kLog, bytes));
    std::vector<int32_t>& log = content_.log;
    log.resize(bytes.size() / sizeof(int32_t));
    if (!log.empty()) std::memcpy(log.data(), bytes.data(), bytes.size());
    for (size_t i = 0; i < log.size(); ++i) {
      if (log[i] >= 0 && log[i] < config_.vocab_size) continue;
      return Invalid("tensor ", kLog, " holds ", log[i], " at index ", i, "; ids are from 0 to ",
                     config_.vocab_size - 1);
    }
    return absl::OkStatus();
  }

  absl::Status ReadState() {
    for (const Part<std::byte>& part : parts_) {
      ASSIGN_OR_RETURN(const std::string_view bytes, Tensor(part.name, part.dtype, part.shape));
      if (!bytes.empty()) std::memcpy(part.bytes.data(), bytes.data(), bytes.size());
    }
    RETURN_IF_ERROR(CheckDigest(kStateDigestKey, "state", Chars(state_->span())));
    RETURN_IF_ERROR(CheckState(state_->span()));
    content_.state = state_;
    return absl::OkStatus();
  }

  // What the position says of the rest of the state.
  absl::Status CheckState(std::span<const std::byte> state) const {
    const int64_t position = content_.state_position;
    if (layout_.position(state) != position) {
      return Invalid("tensor state.position holds ", layout_.position(state), "; metadata ", kStatePositionKey, " is ",
                     position);
    }
    const std::span<const int32_t> tokens = layout_.tokens(state);
    const auto valid = static_cast<size_t>(layout_.tokens_valid(position));
    for (size_t i = 0; i < tokens.size(); ++i) {
      const size_t at = static_cast<size_t>(position) - valid + i;  // index in the log
      const int32_t expected = i < valid ? content_.log[at] : 0;
      if (tokens[i] == expected) continue;
      return Invalid("tensor state.tokens holds ", tokens[i], " at index ", i, "; required is ", expected,
                     i < valid ? StrCat(", the log's id at position ", at + 1) : std::string(", past the state's ids"));
    }
    const std::span<const float> rest =
        layout_.memory(state).subspan(static_cast<size_t>(layout_.memory_valid(position) * config_.d_model));
    const std::string_view bytes = Chars(rest);
    if (const size_t other = bytes.find_first_not_of('\0'); other != std::string_view::npos) {
      return Invalid("tensor state.memory is not 0 at vector ",
                     layout_.memory_valid(position) + static_cast<int64_t>(other / sizeof(float)) / config_.d_model,
                     ", but at position ", position, " there are ", layout_.memory_valid(position), " vectors");
    }
    return absl::OkStatus();
  }

  const StrideHybridConfig& config_;
  const StateLayout layout_;
  const SafetensorsReader file_;
  std::shared_ptr<StateBuffer> state_;  // null: the file has none
  std::vector<Part<std::byte>> parts_;  // of it
  SessionContent content_;
};

}  // namespace

absl::StatusOr<std::string> EncodeSessionFile(const StrideHybridConfig& config, const SessionContent& content) {
  RETURN_IF_ERROR(CheckContent(config, content));
  SafetensorsWriter file;
  for (const auto& [key, value] : MetadataOf(content)) RETURN_IF_ERROR(file.SetMetadata(key, value));
  RETURN_IF_ERROR(file.AddInt32(kLog, {content.info.position}, content.log));
  if (content.state != nullptr) {
    for (const auto& part : StateParts(config, content.state->span())) {
      RETURN_IF_ERROR(file.Add(part.name, part.dtype, part.shape, Chars(part.bytes)));
    }
  }
  return file.ToString();
}

absl::StatusOr<SessionContent> DecodeSessionFile(const StrideHybridConfig& config, std::string_view fingerprint,
                                                 std::string_view bytes) {
  ASSIGN_OR_RETURN(SafetensorsReader file, SafetensorsReader::FromBytes(bytes, "the session file"));
  return Decoder(config, std::move(file)).Decode(fingerprint);
}

}  // namespace smt
