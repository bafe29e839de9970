// Bytes of tokens as they are generated, released as valid UTF-8 only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace smt {

// Holds back an incomplete code point until the tokens that complete it, or until it can no longer become valid: then
// U+FFFD takes the place of each maximal invalid part (one for each part of a sequence that broke off, one for each
// byte that fits nowhere), as in the Unicode standard and Python's errors="replace". So the concatenation of all
// results does not depend on how the bytes fall into tokens. Not thread-safe; one for each stream.
class IncrementalDecoder {
 public:
  // `token_bytes` (Tokenizer::token_bytes()) is kept by reference.
  explicit IncrementalDecoder(const std::vector<std::string>& token_bytes) : token_bytes_(&token_bytes) {}

  // What the token completes; often all of it, perhaps nothing. An id without bytes in the table adds nothing.
  std::string Push(int32_t id);
  std::string PushBytes(std::string_view bytes);
  // At the end of the text: a held back part as U+FFFD. The decoder is then as new.
  std::string Flush();

  // The bytes held back: 0 to 3, the start of a code point.
  std::string_view pending() const { return pending_; }

 private:
  const std::vector<std::string>* token_bytes_;
  std::string pending_;
  int missing_ = 0;                   // bytes until `pending_` is complete
  uint8_t low_ = 0x80, high_ = 0xbf;  // what the next of them may be
};

}  // namespace smt
