// GPT-2's tokenizer on any bytes: encoding loses nothing, and two ways to the same result agree.
#include <cstring>

#include "model/tokenizer/incremental_decoder.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

const Tokenizer& Gpt2() {
  static const Tokenizer* const tokenizer = [] {
    auto loaded = Tokenizer::Load(SMT_SOURCE_DIR "/tests/golden/gpt2-tokenizer");
    FUZZ_CHECK(loaded.ok());
    return new Tokenizer(*std::move(loaded));
  }();
  return *tokenizer;
}

void Run(std::string_view text) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = PieceEnd(text, begin);
    FUZZ_CHECK(end > begin && end <= text.size());
    begin = end;
  }
  for (const bool special : {false, true}) {
    const std::vector<int32_t> ids = Gpt2().Encode(text, {.parse_special = special});
    const auto back = Gpt2().Decode(ids);
    FUZZ_CHECK(back.ok() && *back == text);

    // However the bytes fall into tokens, a stream of them reads the same.
    IncrementalDecoder tokens(Gpt2().token_bytes()), bytes(Gpt2().token_bytes());
    std::string by_token, by_byte;
    for (const int32_t id : ids) by_token += tokens.Push(id);
    for (const char c : text) by_byte += bytes.PushBytes({&c, 1});
    FUZZ_CHECK(by_token + tokens.Flush() == by_byte + bytes.Flush());
  }

  // Any ids, those outside the vocabulary too.
  std::vector<int32_t> ids(text.size() / 4);
  if (!ids.empty()) std::memcpy(ids.data(), text.data(), ids.size() * 4);
  const auto decoded = Gpt2().Decode(ids);
  FUZZ_CHECK(decoded.ok() || absl::IsInvalidArgument(decoded.status()));
  IncrementalDecoder decoder(Gpt2().token_bytes());
  for (const int32_t id : ids) FUZZ_CHECK(decoder.Push(id).size() <= 1024 && decoder.pending().size() <= 3);
}

std::vector<std::string> Seeds() {
  return {"Hello world, it's 2024!  \n\n indented\t",
          "na\xc3\xafve \xe2\x82\xac \xf0\x9f\x98\x80 \xe6\x97\xa5\xe6\x9c\xac", "<|endoftext|>the<|endoftext|",
          "\xff\xfe\xc3 \xed\xa0\x80 \xf4\x90\x80\x80"};
}

}  // namespace

extern const FuzzTarget tokenizer_target;
const FuzzTarget tokenizer_target = {"tokenizer", Run, Seeds};

}  // namespace smt::fuzz
