// Files that a client hands to ImportSession. SHA-256 digests stand before the values; so that inputs get past them,
// each that is a safetensors file is also tried with the digests that its contents have.
#include "server/session/session_file.h"

#include <cstring>

#include "model/base/sha256.h"
#include "model/io/safetensors.h"
#include "model/io/safetensors_writer.h"
#include "model/state_layout.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

constexpr char kFingerprint[] = "f00d";

// Small, so that a whole file is less than what libFuzzer makes.
const StrideHybridConfig& Config(bool mamba) {
  static const StrideHybridConfig* const configs = [] {
    auto* c = new StrideHybridConfig[2];
    for (int i = 0; i < 2; ++i) {
      c[i].vocab_size = 50;
      c[i].d_model = 3;
      c[i].n_ssm_outputs = 2;
      c[i].m_input_tokens = 5;
      c[i].stride = 3;
      c[i].ssm.kind = i == 0 ? SsmKind::kSimple : SsmKind::kMamba;
      c[i].ssm.n_layer = 2;
      c[i].ssm.d_state = 2;
      c[i].ssm.d_conv = 2;
      c[i].ssm.expand = 1;
    }
    return c;
  }();
  return configs[mamba ? 1 : 0];
}

void Decode(const StrideHybridConfig& config, std::string_view bytes) {
  const auto content = DecodeSessionFile(config, kFingerprint, bytes);
  if (!content.ok()) {
    const absl::Status& why = content.status();
    FUZZ_CHECK(absl::IsDataLoss(why) || absl::IsInvalidArgument(why) || absl::IsFailedPrecondition(why));
    FUZZ_CHECK(why.message().size() < 4096);
    return;
  }
  FUZZ_CHECK(content->info.position == static_cast<int64_t>(content->log.size()));
  FUZZ_CHECK(content->info.model_fingerprint == kFingerprint);
  for (const int32_t id : content->log) FUZZ_CHECK(id >= 0 && id < config.vocab_size);
  if (content->state != nullptr) {
    FUZZ_CHECK(content->state->size() == StateLayout(config).bytes());
    FUZZ_CHECK(content->state_position >= 1 && content->state_position <= content->info.position);
  }
  // What was taken can be given again, and is taken as the same.
  const auto encoded = EncodeSessionFile(config, *content);
  FUZZ_CHECK(encoded.ok());
  const auto again = DecodeSessionFile(config, kFingerprint, *encoded);
  FUZZ_CHECK(again.ok() && again->log == content->log && again->numerics_id == content->numerics_id);
  FUZZ_CHECK(again->info.id == content->info.id && again->info.create_time == content->info.create_time);
  FUZZ_CHECK((again->state == nullptr) == (content->state == nullptr));
  if (content->state != nullptr) {
    FUZZ_CHECK(std::memcmp(again->state->span().data(), content->state->span().data(), content->state->size()) == 0);
  }
  FUZZ_CHECK(*EncodeSessionFile(config, *again) == *encoded);
}

// The file's tensors and metadata, in a file whose digests fit; empty where it is none.
std::string Reseal(const StrideHybridConfig& config, std::string_view bytes) {
  const auto file = SafetensorsReader::FromBytes(bytes);
  if (!file.ok()) return "";
  auto metadata = file->metadata();
  if (const TensorInfo* log = file->Find("log")) {
    Sha256 sha;
    sha.Add(file->Bytes(*log));
    metadata["log_digest"] = sha.HexDigest();
  }
  const StateLayout layout(config);
  StateBuffer state(layout.bytes());
  std::memset(state.span().data(), 0, state.size());
  const auto copy = [&](std::string_view name, void* to, size_t size) {
    const TensorInfo* tensor = file->Find(name);
    if (tensor != nullptr && size > 0 && file->Bytes(*tensor).size() == size) {
      std::memcpy(to, file->Bytes(*tensor).data(), size);
    }
  };
  copy("state.position", &layout.position(state.span()), sizeof(int64_t));
  copy("state.tokens", layout.tokens(state.span()).data(), layout.tokens(state.span()).size_bytes());
  copy("state.memory", layout.memory(state.span()).data(), layout.memory(state.span()).size_bytes());
  copy("state.ssm.conv", layout.conv(state.span()).data(), layout.conv(state.span()).size_bytes());
  copy("state.ssm.state", layout.state(state.span()).data(), layout.state(state.span()).size_bytes());
  Sha256 sha;
  sha.Add({reinterpret_cast<const char*>(state.span().data()), state.size()});
  if (metadata.contains("state_digest")) metadata["state_digest"] = sha.HexDigest();
  Sha256 all;
  for (const auto& [key, value] : metadata) {
    if (key == "metadata_digest") continue;
    all.AddPiece(key);
    all.AddPiece(value);
  }
  metadata["metadata_digest"] = all.HexDigest();
  SafetensorsWriter out;
  for (const auto& [key, value] : metadata) {
    if (!out.SetMetadata(key, value).ok()) return "";
  }
  for (const TensorInfo& tensor : file->tensors()) {
    if (!out.Add(tensor.name, tensor.dtype, tensor.shape, file->Bytes(tensor)).ok()) return "";
  }
  return out.ToString().value_or("");
}

// The first byte chooses the model and whether what follows is a file or the text of its header and then, after a
// zero byte, its data: a length that must fit the text would keep mutations of it out.
void Run(std::string_view bytes) {
  Input in(bytes);
  const uint8_t choice = in.Byte();
  const StrideHybridConfig& config = Config((choice & 1) != 0);
  std::string file(in.Rest());
  if ((choice & 2) != 0) {
    const std::string_view header = in.Part();
    file.clear();
    for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(uint64_t{header.size()} >> (8 * i)));
    file.append(header).append(in.Rest());
  }
  Decode(config, file);
  if (const std::string resealed = Reseal(config, file); !resealed.empty()) Decode(config, resealed);
}

SessionContent Content(const StrideHybridConfig& config, int64_t position, int64_t state_position) {
  SessionContent content;
  content.info.id = "story";
  content.info.position = position;
  content.info.branch = 3;
  content.info.create_time = absl::FromUnixNanos(1'700'000'000'123'456'789);
  content.info.model_fingerprint = kFingerprint;
  for (int64_t i = 0; i < position; ++i) content.log.push_back(static_cast<int32_t>((7 * i + 3) % config.vocab_size));
  if (state_position == 0) return content;
  const StateLayout layout(config);
  auto state = std::make_shared<StateBuffer>(layout.bytes());
  std::memset(state->span().data(), 0, state->size());
  layout.position(state->span()) = content.state_position = state_position;
  const int64_t valid = layout.tokens_valid(state_position);
  std::copy_n(content.log.begin() + state_position - valid, valid, layout.tokens(state->span()).begin());
  for (float& f : layout.state(state->span())) f = 0.5f;
  content.state = std::move(state);
  content.numerics_id = "cpu/float32";
  return content;
}

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (const bool mamba : {false, true}) {
    for (const auto& [position, state_position] : {std::pair<int64_t, int64_t>{0, 0}, {1, 1}, {2, 1}, {11, 10}}) {
      const std::string file = *EncodeSessionFile(Config(mamba), Content(Config(mamba), position, state_position));
      seeds.push_back(std::string(1, mamba ? '\x01' : '\0') + file);
      uint64_t header = 0;
      std::memcpy(&header, file.data(), 8);
      std::string parts(1, mamba ? '\x03' : '\x02');
      parts.append(file, 8, header).push_back('\0');
      seeds.push_back(parts.append(file, 8 + header));
    }
  }
  return seeds;
}

}  // namespace

extern const FuzzTarget session_file_target;
const FuzzTarget session_file_target = {"session_file", Run, Seeds};

}  // namespace smt::fuzz
