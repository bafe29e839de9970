// The file of a session: what is written reads back bit for bit, and whatever else is in one is told.
#include "server/session/session_file.h"

#include <bit>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <set>

#include "model/base/sha256.h"
#include "model/base/strings.h"
#include "model/io/safetensors.h"
#include "model/io/safetensors_writer.h"
#include "model/state_layout.h"
#include "server/base/status_details.h"
#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

constexpr char kGolden[] = "tests/golden/session/version-1.safetensors";

StrideHybridConfig MambaConfig() {
  StrideHybridConfig config;
  config.vocab_size = 50;
  config.d_model = 3;
  config.n_ssm_outputs = 2;
  config.m_input_tokens = 5;
  config.stride = 3;
  config.ssm.n_layer = 2;
  config.ssm.d_state = 2;
  config.ssm.d_conv = 2;
  config.ssm.expand = 1;
  return config;
}

StrideHybridConfig SimpleConfig() {
  StrideHybridConfig config = MambaConfig();
  config.ssm.kind = SsmKind::kSimple;
  return config;
}

// A state at `position` of this log, with floats of every kind.
std::shared_ptr<const StateBuffer> StateAt(const StrideHybridConfig& config, int64_t position,
                                           const std::vector<int32_t>& log) {
  const StateLayout layout(config);
  auto state = std::make_shared<StateBuffer>(layout.bytes());
  std::memset(state->span().data(), 0, state->size());
  layout.position(state->span()) = position;
  const int64_t valid = layout.tokens_valid(position);
  std::copy(log.begin() + position - valid, log.begin() + position, layout.tokens(state->span()).begin());
  float value = -1.5f;
  const auto fill = [&](std::span<float> out) {
    for (float& f : out) f = value *= -1.0625f;
    if (!out.empty()) out.front() = -0.0f;
    if (out.size() > 1) out[1] = std::bit_cast<float>(0x7fc12345u);  // a NaN with a payload
    if (out.size() > 2) out[2] = std::numeric_limits<float>::denorm_min();
  };
  fill(layout.memory(state->span()).first(static_cast<size_t>(layout.memory_valid(position) * config.d_model)));
  fill(layout.conv(state->span()));
  fill(layout.state(state->span()));
  return state;
}

SessionContent Content(const StrideHybridConfig& config, int64_t position = 11, int64_t state_position = 10) {
  SessionContent content;
  content.info.id = "story";
  content.info.position = position;
  content.info.branch = 3;
  content.info.create_time = absl::FromUnixNanos(1'700'000'000'123'456'789);
  content.info.model_fingerprint = "f00d";
  for (int64_t i = 0; i < position; ++i) content.log.push_back(static_cast<int32_t>((7 * i + 3) % config.vocab_size));
  if (state_position > 0) {
    content.state_position = state_position;
    content.state = StateAt(config, state_position, content.log);
    content.numerics_id = "cpu/float32/\"quoted\"";
  }
  return content;
}

void ExpectSame(const SessionContent& got, const SessionContent& want) {
  EXPECT_EQ(got.info.id, want.info.id);
  EXPECT_EQ(got.info.position, want.info.position);
  EXPECT_EQ(got.info.branch, want.info.branch);
  EXPECT_EQ(got.info.create_time, want.info.create_time);
  EXPECT_EQ(got.info.model_fingerprint, want.info.model_fingerprint);
  EXPECT_EQ(got.log, want.log);
  EXPECT_EQ(got.state_position, want.state_position);
  EXPECT_EQ(got.numerics_id, want.numerics_id);
  ASSERT_EQ(got.state == nullptr, want.state == nullptr);
  if (want.state == nullptr) return;
  ASSERT_EQ(got.state->size(), want.state->size());
  EXPECT_EQ(std::memcmp(got.state->span().data(), want.state->span().data(), want.state->size()), 0);
}

absl::StatusOr<SessionContent> Decode(std::string_view bytes, const StrideHybridConfig& config = MambaConfig()) {
  return DecodeSessionFile(config, "f00d", bytes);
}

// A file taken apart, to be put together again otherwise; the digests can be made to fit.
struct Tampered {
  struct Tensor {
    SafetensorsDType dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;

  explicit Tampered(const std::string& bytes) {
    const SafetensorsReader file = *SafetensorsReader::FromBytes(bytes);
    metadata = file.metadata();
    for (const TensorInfo& t : file.tensors()) {
      tensors[t.name] = {t.dtype, t.shape, std::string(file.Bytes(t))};
    }
  }
  void SealMetadata() {
    Sha256 sha;
    for (const auto& [key, value] : metadata) {
      if (key == "metadata_digest") continue;
      sha.AddPiece(key);
      sha.AddPiece(value);
    }
    metadata["metadata_digest"] = sha.HexDigest();
  }
  void SealLog() {
    Sha256 sha;
    sha.Add(tensors["log"].bytes);
    metadata["log_digest"] = sha.HexDigest();
  }
  void SealState(const StrideHybridConfig& config) {
    const StateLayout layout(config);
    StateBuffer state(layout.bytes());
    std::memset(state.span().data(), 0, state.size());
    const auto copy = [&](const std::string& name, void* to) {
      const std::string& bytes = tensors[name].bytes;
      std::memcpy(to, bytes.data(), bytes.size());
    };
    copy("state.position", &layout.position(state.span()));
    copy("state.tokens", layout.tokens(state.span()).data());
    copy("state.memory", layout.memory(state.span()).data());
    copy("state.ssm.conv", layout.conv(state.span()).data());
    copy("state.ssm.state", layout.state(state.span()).data());
    Sha256 sha;
    sha.Add({reinterpret_cast<const char*>(state.span().data()), state.size()});
    metadata["state_digest"] = sha.HexDigest();
  }
  std::string Bytes() const {
    SafetensorsWriter file;
    for (const auto& [key, value] : metadata) EXPECT_OK(file.SetMetadata(key, value));
    for (const auto& [name, t] : tensors) EXPECT_OK(file.Add(name, t.dtype, t.shape, t.bytes));
    return *file.ToString();
  }
  absl::Status Read() {
    SealMetadata();
    return Decode(Bytes()).status();
  }
};

TEST(SessionFileTest, ReadsBackBitForBit) {
  for (const StrideHybridConfig& config : {MambaConfig(), SimpleConfig()}) {
    // From before the window is full to long after; the state at the head, behind it and not there.
    for (const auto& [position, state_position] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 0}, {1, 0}, {1, 1}, {2, 1}, {5, 5}, {6, 6}, {11, 10}, {1000, 1000}, {1000, 7}, {1000, 0}}) {
      const SessionContent content = Content(config, position, state_position);
      const absl::StatusOr<std::string> bytes = EncodeSessionFile(config, content);
      ASSERT_OK(bytes);
      const absl::StatusOr<SessionContent> read = Decode(*bytes, config);
      ASSERT_OK(read);
      ExpectSame(*read, content);
      EXPECT_EQ(*EncodeSessionFile(config, *read), *bytes);
    }
  }
}

TEST(SessionFileTest, AnyReaderFindsEachPartOfTheStateByItsName) {
  const SessionContent content = Content(MambaConfig());
  const std::string bytes = *EncodeSessionFile(MambaConfig(), content);
  const SafetensorsReader file = *SafetensorsReader::FromBytes(bytes);
  std::set<std::string> names;
  for (const TensorInfo& tensor : file.tensors()) names.insert(tensor.name + " " + ShapeToString(tensor.shape));
  EXPECT_THAT(names, UnorderedElementsAre("log [11]", "state.position []", "state.tokens [5]", "state.memory [2, 3]",
                                          "state.ssm.conv [2, 3, 2]", "state.ssm.state [2, 3, 2]"));
  EXPECT_EQ(*file.ReadInt32("log"), content.log);
  EXPECT_EQ(*file.ReadInt64("state.position"), std::vector<int64_t>{10});
  EXPECT_EQ(file.metadata().at("format"), "smt-session");
  EXPECT_EQ(file.metadata().at("format_version"), "1");
  EXPECT_EQ(file.metadata().at("origin"), "sessions/story");
  EXPECT_EQ(file.metadata().at("create_time"), "2023-11-14T22:13:20.123456789+00:00");
}

TEST(SessionFileTest, TheFirstVersionIsReadForEver) {
  const SessionContent content = Content(MambaConfig());
  if (std::getenv("SMT_UPDATE_GOLDEN") != nullptr) {
    std::filesystem::create_directories(std::filesystem::path(kGolden).parent_path());
    std::ofstream(kGolden, std::ios::binary) << *EncodeSessionFile(MambaConfig(), content);
  }
  std::ifstream in(kGolden, std::ios::binary);
  const std::string golden((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const absl::StatusOr<SessionContent> read = Decode(golden);
  ASSERT_OK(read);
  ExpectSame(*read, content);
  EXPECT_EQ(*EncodeSessionFile(MambaConfig(), content), golden) << "what is written has changed: a new version?";
}

TEST(SessionFileTest, EveryBitFlipIsToldOrChangesNothing) {
  const SessionContent content = Content(MambaConfig());
  std::string bytes = *EncodeSessionFile(MambaConfig(), content);
  std::set<StatusCode> codes;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
      const absl::StatusOr<SessionContent> read = Decode(bytes);
      codes.insert(read.status().code());
      if (read.ok()) ExpectSame(*read, content);
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
    }
  }
  codes.erase(StatusCode::kOk);
  EXPECT_THAT(codes, UnorderedElementsAre(StatusCode::kDataLoss, StatusCode::kInvalidArgument,
                                          StatusCode::kFailedPrecondition));
}

TEST(SessionFileTest, EveryCutIsDataLoss) {
  const std::string bytes = *EncodeSessionFile(MambaConfig(), Content(MambaConfig()));
  for (size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_THAT(Decode(std::string_view(bytes).substr(0, size)), StatusIs(StatusCode::kDataLoss, HasSubstr("byte")));
  }
  EXPECT_THAT(Decode(bytes + '\0'), StatusIs(StatusCode::kDataLoss, HasSubstr("byte")));
}

TEST(SessionFileTest, ChangesThatTheSafetensorsReaderCannotSeeAreDataLoss) {
  const std::string bytes = *EncodeSessionFile(MambaConfig(), Content(MambaConfig()));
  for (const std::string name : {"log", "state.tokens", "state.memory", "state.ssm.conv", "state.ssm.state"}) {
    Tampered file(bytes);
    file.tensors[name].bytes[4] ^= 1;
    EXPECT_THAT(file.Read(), StatusIs(StatusCode::kDataLoss, HasSubstr("SHA-256"))) << name;
  }
  for (const std::string key : {"origin", "branch", "create_time", "numerics_id", "log_digest", "state_digest"}) {
    Tampered file(bytes);
    file.metadata[key] += "0";
    EXPECT_THAT(Decode(file.Bytes()), StatusIs(StatusCode::kDataLoss, HasSubstr("metadata's SHA-256"))) << key;
  }
  Tampered more(bytes);
  more.metadata["added"] = "1";
  EXPECT_THAT(Decode(more.Bytes()), StatusIs(StatusCode::kDataLoss, HasSubstr("")));
}

TEST(SessionFileTest, OtherModelsAndNewerVersionsAreFailedPreconditions) {
  const std::string bytes = *EncodeSessionFile(MambaConfig(), Content(MambaConfig()));
  const absl::Status model = DecodeSessionFile(MambaConfig(), "beef", bytes).status();
  EXPECT_THAT(model, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("'f00d'; this server's model has 'beef'")));
  EXPECT_EQ(GetDetails(model).reason, "MODEL_MISMATCH");
  Tampered newer(bytes);
  newer.metadata["format_version"] = "2";
  const absl::Status version = newer.Read();
  EXPECT_THAT(version, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("version is 2; versions up to 1")));
  EXPECT_EQ(GetDetails(version).reason, "FORMAT_VERSION");
}

TEST(SessionFileTest, HostileFilesWithDigestsThatFitAreRefusedByName) {
  const std::string bytes = *EncodeSessionFile(MambaConfig(), Content(MambaConfig()));
  const auto expect = [&](const std::function<void(Tampered&)>& change, const std::string& message) {
    Tampered file(bytes);
    change(file);
    EXPECT_THAT(file.Read(), StatusIs(StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  const auto set = [](std::string* bytes, size_t index, int32_t value) {
    std::memcpy(bytes->data() + 4 * index, &value, 4);
  };
  expect([](auto& f) { f.metadata["format"] = "gguf"; }, "metadata format is 'gguf'; required is 'smt-session'");
  expect([](auto& f) { f.metadata.erase("format"); }, "metadata format is not there");
  expect([](auto& f) { f.metadata["format_version"] = "0"; }, "metadata format_version is '0'; allowed");
  expect([](auto& f) { f.metadata["position"] = "-1"; }, "metadata position is '-1'; allowed is a number from 0");
  expect([](auto& f) { f.metadata["position"] = "11 "; }, "metadata position is '11 '");
  expect([](auto& f) { f.metadata["position"] = "99999999999999999999"; }, "metadata position is");
  expect([](auto& f) { f.metadata["branch"] = ""; }, "metadata branch is ''");
  expect([](auto& f) { f.metadata["create_time"] = "noon"; }, "metadata create_time is 'noon'");
  expect([](auto& f) { f.metadata["position"] = "12"; }, "tensor log is I32 [11]; required is I32 [12]");
  expect([](auto& f) { f.metadata["state_position"] = "0"; }, "metadata state_position is '0'");
  expect([](auto& f) { f.metadata["state_position"] = "12"; }, "the state is at position 12, beyond the log");
  expect([](auto& f) { f.metadata["state_position"] = "11"; }, "tensor state.position holds 10; metadata");
  for (const std::string key : {"format_version", "origin", "position", "branch", "create_time", "model_fingerprint",
                                "log_digest", "numerics_id", "state_digest"}) {
    expect([&](auto& f) { f.metadata.erase(key); }, "the metadata has no " + key);
  }
  expect([](auto& f) { f.metadata.erase("state_position"); }, "has a tensor 'state.");
  expect([](auto& f) { f.tensors["extra"] = {SafetensorsDType::kU8, {1}, "x"}; }, "has a tensor 'extra'");
  for (const std::string name : {"log", "state.position", "state.memory", "state.ssm.conv"}) {
    expect([&](auto& f) { f.tensors.erase(name); }, "has no tensor " + name);
  }
  expect([](auto& f) { f.tensors["log"].dtype = SafetensorsDType::kU32; }, "tensor log is U32 [11]; required is I32");
  expect(
      [](auto& f) {
        f.tensors["state.memory"].shape = {3, 2};
      },
      "tensor state.memory is F32 [3, 2]; required is F32 [2, 3]");
  expect([](auto& f) { f.tensors["state.position"].shape = {1}; }, "state.position is I64 [1]; required is I64 []");
  for (const int32_t id : {-1, 50, std::numeric_limits<int32_t>::max()}) {
    expect(
        [&](auto& f) {
          set(&f.tensors["log"].bytes, 2, id);
          f.SealLog();
        },
        StrCat("tensor log holds ", id, " at index 2; ids are from 0 to 49"));
  }
  expect(
      [&](auto& f) {
        set(&f.tensors["state.tokens"].bytes, 1, 9);
        f.SealState(MambaConfig());
      },
      "tensor state.tokens holds 9 at index 1; required is 45, the log's id at position 7");
}

TEST(SessionFileTest, WhatLiesPastAShortStateMustBeZero) {
  const std::string bytes = *EncodeSessionFile(MambaConfig(), Content(MambaConfig(), 4, 4));
  Tampered tokens(bytes);
  tokens.tensors["state.tokens"].bytes[4 * 4] = 1;
  tokens.SealState(MambaConfig());
  EXPECT_THAT(tokens.Read(), StatusIs(StatusCode::kInvalidArgument, HasSubstr("index 4; required is 0")));
  Tampered memory(bytes);
  memory.tensors["state.memory"].bytes[4 * 5] = 1;
  memory.SealState(MambaConfig());
  EXPECT_THAT(memory.Read(), StatusIs(StatusCode::kInvalidArgument,
                                      HasSubstr("state.memory is not 0 at vector 1, but at position 4")));
}

TEST(SessionFileTest, TensorsMayComeInAnyOrder) {
  const SessionContent content = Content(MambaConfig());
  const std::string bytes = *EncodeSessionFile(MambaConfig(), content);
  const SafetensorsReader file = *SafetensorsReader::FromBytes(bytes);
  // By hand: the writer has an order of its own.
  std::string header = "{", data;
  std::vector<TensorInfo> tensors(file.tensors().rbegin(), file.tensors().rend());
  for (const TensorInfo& tensor : tensors) {
    const size_t begin = data.size();
    data += file.Bytes(tensor);
    header +=
        StrCat("\"", tensor.name, "\":{\"dtype\":\"", Name(tensor.dtype), "\",\"shape\":", ShapeToString(tensor.shape),
               ",\"data_offsets\":[", begin, ",", data.size(), "]},");
  }
  header += "\"__metadata__\":{";
  for (const auto& [key, value] : file.metadata()) {
    std::string escaped;
    for (const char c : value) escaped += c == '"' ? "\\\"" : std::string(1, c);
    header += StrCat(header.back() == '{' ? "" : ",", "\"", key, "\":\"", escaped, "\"");
  }
  header += "}} ";  // so that nothing is aligned
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  const absl::StatusOr<SessionContent> read = Decode(length + header + data);
  ASSERT_OK(read);
  ExpectSame(*read, content);
}

TEST(SessionFileTest, ContradictionsAreNotWritten) {
  const auto expect = [](const std::function<void(SessionContent&)>& change, const std::string& message) {
    SessionContent content = Content(MambaConfig());
    change(content);
    EXPECT_THAT(EncodeSessionFile(MambaConfig(), content), StatusIs(StatusCode::kInternal, HasSubstr(message)));
  };
  expect([](auto& c) { c.log.pop_back(); }, "10 ids for position 11");
  expect([](auto& c) { c.state = std::make_shared<StateBuffer>(8); }, "its state has 8 bytes");
  expect([](auto& c) { c.state_position = 9; }, "its state says position 10, its owner 9");
  expect(
      [](auto& c) {
        c.log.resize(9);
        c.info.position = 9;
      },
      "its state is at position 10, its log ends at 9");
  expect(
      [](auto& c) {
        auto state = std::make_shared<StateBuffer>(c.state->size());
        std::memcpy(state->span().data(), c.state->span().data(), state->size());
        state->span()[8] = std::byte{1};
        c.state = state;
      },
      "bytes other than 0");
}

}  // namespace
}  // namespace smt
