// Text to token ids and back, as the service needs it. TokenizerCodec (tokenizer_codec.h) puts the model's tokenizer
// behind it; tests use one id a byte.
//
// Thread-safe: const after construction.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace smt {

class TextCodec {
 public:
  virtual ~TextCodec() = default;
  // Any bytes. `parse_special`: special tokens spelled out become the token; otherwise they are ordinary text.
  virtual std::vector<int32_t> Encode(std::string_view bytes, bool parse_special) const = 0;
  // Exact bytes of each id of the model's vocabulary; index = id. Empty where the tokenizer has no such id.
  virtual const std::vector<std::string>& token_bytes() const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
};

}  // namespace smt
