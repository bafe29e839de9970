// GPT-2's byte-level BPE: any bytes to token ids and back, without loss.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/tokenizer_files.h"
#include "model/tokenizer/vocabulary.h"

namespace smt {

struct EncodeOptions {
  // Special tokens spelled out in the text (the leftmost first, of several there the longest) become the token; else
  // they are ordinary text.
  bool parse_special = false;
};

// Const use is thread-safe and takes no lock.
class Tokenizer {
 public:
  Tokenizer(Tokenizer&&) = default;
  Tokenizer& operator=(Tokenizer&&) = default;

  // Of a folder with vocab.json and merges.txt; added_tokens.json, tokenizer_config.json and special_tokens_map.json
  // are read where they exist (see vocabulary.h). NOT_FOUND for a missing file, INVALID_ARGUMENT for one that does not
  // fit; messages begin with the folder and name the file, the token or line, and what is allowed.
  static absl::StatusOr<Tokenizer> Load(const std::string& dir);
  static absl::StatusOr<Tokenizer> FromFiles(const TokenizerFiles& files);

  // Makes a token special, as config.json's bos and eos ids are. INVALID_ARGUMENT outside the vocabulary.
  absl::Status MarkSpecial(int32_t id);

  // Any bytes; those that are not UTF-8 become tokens like others, so that Decode(Encode(x)) == x. O(n log n).
  std::vector<int32_t> Encode(std::string_view text, EncodeOptions options = {}) const;

  // The bytes, which need not be UTF-8 (see IncrementalDecoder). INVALID_ARGUMENT naming the index of an id outside the
  // vocabulary.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids) const;

  int32_t vocab_size() const { return static_cast<int32_t>(token_bytes_.size()); }
  const std::vector<std::string>& token_bytes() const { return token_bytes_; }  // index = id
  bool IsSpecial(int32_t id) const;
  std::optional<int32_t> IdOf(std::string_view special) const;  // of a special token's text

 private:
  struct SpecialToken {
    std::string text;
    int32_t id;
  };

  explicit Tokenizer(Vocabulary vocabulary);

  // Appends the tokens of text without special tokens.
  void EncodeOrdinary(std::string_view text, std::vector<int32_t>* out) const;
  // The first special token in `text` at `from` or after it; its place goes to *at.
  const SpecialToken* FindSpecial(std::string_view text, size_t from, size_t* at) const;

  std::vector<std::string> token_bytes_;
  std::array<int32_t, 256> byte_ids_;
  BpeMerges merges_;
  // Tokens that their own bytes encode to: most words of a text, found by one look-up. Keys point into token_bytes_.
  std::unordered_map<std::string_view, int32_t> whole_pieces_;
  std::vector<bool> is_special_;                                      // index = id
  std::array<std::vector<SpecialToken>, 256> special_by_first_byte_;  // longest first
};

}  // namespace smt
