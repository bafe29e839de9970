// The files a tokenizer is made of. An input is five of them, zero bytes between, then a text. What a first byte of
// '+' says is added: the 256 bytes to the vocabulary, so that inputs get past its first check.
#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

const std::string& ByteTokens() {
  static const std::string* const text = [] {
    auto* out = new std::string("{");
    for (int byte = 0; byte < 256; ++byte) {
      std::string spelling = SpellByte(static_cast<uint8_t>(byte));
      if (spelling == "\"" || spelling == "\\") spelling.insert(0, "\\");
      *out += (byte == 0 ? "\"" : ",\"") + spelling + "\":" + std::to_string(byte);
    }
    return out;
  }();
  return *text;
}

void Run(std::string_view bytes) {
  Input in(bytes);
  TokenizerFiles files;
  if (bytes.starts_with('+')) {
    in.Byte();
    files.vocab_json = ByteTokens();
  }
  files.vocab_json += in.Part();
  files.merges_txt = in.Part();
  for (auto* file : {&files.added_tokens_json, &files.tokenizer_config_json, &files.special_tokens_map_json}) {
    const std::string_view part = in.Part();
    if (!part.empty()) *file = std::string(part);
  }
  const auto tokenizer = Tokenizer::FromFiles(files);
  if (!tokenizer.ok()) {
    FUZZ_CHECK(absl::IsInvalidArgument(tokenizer.status()));
    FUZZ_CHECK(tokenizer.status().message().size() < 4096);
    return;
  }
  FUZZ_CHECK(tokenizer->vocab_size() >= 256);
  for (const std::string_view text : {in.Rest(), bytes}) {
    for (const bool special : {false, true}) {
      const std::vector<int32_t> ids = tokenizer->Encode(text, {.parse_special = special});
      const auto back = tokenizer->Decode(ids);
      FUZZ_CHECK(back.ok() && *back == text);
    }
  }
}

std::vector<std::string> Seeds() {
  using namespace std::string_literals;
  return {"+}\0\0\0\0\0some text"s,
          "+,\"ab\":256,\"abc\":257,\"<|endoftext|>\":258}\0#version: 0.2\na b\nab c\n\0{\"<s>\":259}\0"
          "{\"bos_token\":\"<s>\",\"added_tokens_decoder\":{\"260\":{\"content\":\"<x>\",\"special\":true}}}\0"
          "{\"eos_token\":{\"content\":\"<|endoftext|>\"},\"additional_special_tokens\":[\"<s>\"]}\0abcab<s><x>abc"s,
          "{\"a\":0}\0a a"s};
}

}  // namespace

extern const FuzzTarget tokenizer_files_target;
const FuzzTarget tokenizer_files_target = {"tokenizer_files", Run, Seeds};

}  // namespace smt::fuzz
