// The model's tokenizer as the service sees it.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/tokenizer/tokenizer.h"
#include "server/service/text_codec.h"

namespace smt {

class TokenizerCodec final : public TextCodec {
 public:
  // `vocab_size`: the model's, at least the tokenizer's. Ids that only the model has are given no bytes.
  TokenizerCodec(Tokenizer tokenizer, int32_t vocab_size)
      : tokenizer_(std::move(tokenizer)), token_bytes_(tokenizer_.token_bytes()) {
    token_bytes_.resize(vocab_size);
  }

  std::vector<int32_t> Encode(std::string_view bytes, bool parse_special) const override {
    return tokenizer_.Encode(bytes, {.parse_special = parse_special});
  }
  const std::vector<std::string>& token_bytes() const override { return token_bytes_; }
  bool IsSpecial(int32_t id) const override { return id < tokenizer_.vocab_size() && tokenizer_.IsSpecial(id); }

 private:
  const Tokenizer tokenizer_;
  std::vector<std::string> token_bytes_;
};

}  // namespace smt
