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
  explicit TokenizerCodec(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  std::vector<int32_t> Encode(std::string_view bytes, bool parse_special) const override {
    return tokenizer_.Encode(bytes, {.parse_special = parse_special});
  }
  const std::vector<std::string>& token_bytes() const override { return tokenizer_.token_bytes(); }
  bool IsSpecial(int32_t id) const override { return tokenizer_.IsSpecial(id); }

 private:
  const Tokenizer tokenizer_;
};

}  // namespace smt
