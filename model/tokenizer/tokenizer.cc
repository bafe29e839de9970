#include "model/tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/tokenizer/pre_tokenizer.h"

namespace smt {
namespace {

// Longer pieces, which no text has, are encoded in parts so that positions fit 32 bits.
constexpr size_t kLongestPiece = size_t{1} << 31;

}  // namespace

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::string& dir) {
  ASSIGN_OR_RETURN(const TokenizerFiles files, ReadTokenizerFiles(dir));
  absl::StatusOr<Tokenizer> tokenizer = FromFiles(files);
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(), StrCat(dir, "/", std::string(tokenizer.status().message())));
  }
  return tokenizer;
}

absl::StatusOr<Tokenizer> Tokenizer::FromFiles(const TokenizerFiles& files) {
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ParseVocabulary(files));
  return Tokenizer(std::move(vocabulary));
}

Tokenizer::Tokenizer(Vocabulary vocabulary)
    : token_bytes_(std::move(vocabulary.token_bytes)),
      byte_ids_(vocabulary.byte_ids),
      merges_(std::move(vocabulary.merges)),
      is_special_(token_bytes_.size(), false) {
  for (const int32_t id : vocabulary.special) MarkSpecial(id).IgnoreError();  // in range by construction
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocab_size(); ++id) {
    const std::string& bytes = token_bytes_[id];
    ids.clear();
    for (const char byte : bytes) ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
    merges_.Merge(&ids);
    if (ids.size() == 1) whole_pieces_.emplace(bytes, ids[0]);
  }
}

absl::Status Tokenizer::MarkSpecial(int32_t id) {
  if (id < 0 || id >= vocab_size()) {
    return absl::InvalidArgumentError(
        StrCat("special token id is ", id, "; allowed are the vocabulary's ids, 0 to ", vocab_size() - 1));
  }
  if (is_special_[id]) return absl::OkStatus();
  is_special_[id] = true;
  const std::string& text = token_bytes_[id];
  std::vector<SpecialToken>& tokens = special_by_first_byte_[static_cast<unsigned char>(text[0])];
  const auto place = std::find_if(tokens.begin(), tokens.end(),
                                  [&](const SpecialToken& other) { return other.text.size() < text.size(); });
  tokens.insert(place, SpecialToken{text, id});
  return absl::OkStatus();
}

bool Tokenizer::IsSpecial(int32_t id) const { return id >= 0 && id < vocab_size() && is_special_[id]; }

std::optional<int32_t> Tokenizer::IdOf(std::string_view special) const {
  if (special.empty()) return std::nullopt;
  for (const SpecialToken& token : special_by_first_byte_[static_cast<unsigned char>(special[0])]) {
    if (token.text == special) return token.id;
  }
  return std::nullopt;
}

const Tokenizer::SpecialToken* Tokenizer::FindSpecial(std::string_view text, size_t from, size_t* at) const {
  for (*at = from; *at < text.size(); ++*at) {
    for (const SpecialToken& token : special_by_first_byte_[static_cast<unsigned char>(text[*at])]) {
      if (text.substr(*at).starts_with(token.text)) return &token;
    }
  }
  return nullptr;
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, EncodeOptions options) const {
  std::vector<int32_t> out;
  size_t begin = 0;
  if (options.parse_special) {
    size_t at = 0;
    while (const SpecialToken* token = FindSpecial(text, begin, &at)) {
      EncodeOrdinary(text.substr(begin, at - begin), &out);
      out.push_back(token->id);
      begin = at + token->text.size();
    }
  }
  EncodeOrdinary(text.substr(begin), &out);
  return out;
}

void Tokenizer::EncodeOrdinary(std::string_view text, std::vector<int32_t>* out) const {
  std::vector<int32_t> ids;
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
    end = std::min(PieceEnd(text, begin), begin + kLongestPiece);
    const std::string_view piece = text.substr(begin, end - begin);
    if (const auto whole = whole_pieces_.find(piece); whole != whole_pieces_.end()) {
      out->push_back(whole->second);
      continue;
    }
    ids.clear();
    for (const char byte : piece) ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
    merges_.Merge(&ids);
    out->insert(out->end(), ids.begin(), ids.end());
  }
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids) const {
  std::string bytes;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size()) {
      return absl::InvalidArgumentError(
          StrCat("ids[", i, "] is ", ids[i], "; allowed are the vocabulary's ids, 0 to ", vocab_size() - 1));
    }
    bytes += token_bytes_[ids[i]];
  }
  return bytes;
}

}  // namespace smt
