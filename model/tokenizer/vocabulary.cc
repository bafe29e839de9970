#include "model/tokenizer/vocabulary.h"

#include <unicode/utf8.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/tokenizer/byte_alphabet.h"

namespace smt {
namespace {

using TokenIds = absl::flat_hash_map<std::string, int64_t>;

constexpr char kVocab[] = "vocab.json";
constexpr char kAdded[] = "added_tokens.json";
constexpr char kTokenizerConfig[] = "tokenizer_config.json";
constexpr char kSpecialMap[] = "special_tokens_map.json";

// Text of a hostile file as a message may hold it: UTF-8 stays readable ("Ġthe"), control characters and bytes that are
// not UTF-8 are escaped, and what is longer than `limit` bytes is cut.
std::string Printable(std::string_view text, size_t limit) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (i >= limit) return out + "…";
    const size_t begin = i;
    UChar32 character;
    U8_NEXT(text.data(), i, text.size(), character);
    const std::string_view bytes = text.substr(begin, i - begin);
    out += character >= 0xa0 ? std::string(bytes) : absl::CHexEscape(ToAbsl(bytes));
  }
  return out;
}

std::string Quote(std::string_view token) { return StrCat("'", Printable(token, 64), "'"); }

absl::Status Error(std::string_view file, std::string_view message) {
  return absl::InvalidArgumentError(StrCat(file, ": ", message));
}

std::string WithoutTag(std::string_view what) {  // "[json.exception.parse_error.101] parse error at …"
  what.remove_prefix(std::min(what.size(), what.find("] ") + 2));
  return Printable(what, 200);
}

// The JSON parser takes a zero byte for the end of its input, and would not look at what follows.
absl::Status CheckNoZeroByte(std::string_view file, std::string_view json) {
  const size_t zero = json.find('\0');
  if (zero == std::string_view::npos) return absl::OkStatus();
  return Error(file, StrCat("is not JSON: byte ", zero + 1, " is zero"));
}

// {"token": id, …} and nothing else; streamed, because a tree would hide tokens named twice.
class TokenIdsHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit TokenIdsHandler(TokenIds* ids) : ids_(ids) {}
  const std::string& error() const { return error_; }

  bool null() override { return Refuse("null"); }
  bool boolean(bool value) override { return Refuse(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return Refuse(absl::StrCat(value)); }
  bool number_float(number_float_t, const string_t& text) override { return Refuse(text.substr(0, 64)); }
  bool string(string_t& value) override { return Refuse(Quote(value)); }
  bool binary(binary_t&) override { return Refuse("binary"); }
  bool start_array(std::size_t) override { return Refuse("an array"); }
  bool end_array() override { return true; }
  bool end_object() override { return true; }

  bool start_object(std::size_t) override {
    if (inside_) return Refuse("an object");
    inside_ = true;
    return true;
  }
  bool key(string_t& value) override {
    key_ = std::move(value);
    if (!ids_->contains(key_)) return true;
    error_ = StrCat("token ", Quote(key_), " is there twice");
    return false;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!inside_ || value > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
      return Refuse(absl::StrCat(value));
    }
    ids_->emplace(key_, static_cast<int64_t>(value));
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& exception) override {
    error_ = StrCat("is not JSON: ", WithoutTag(exception.what()));
    return false;
  }

 private:
  bool Refuse(std::string_view value) {
    error_ = inside_ ? StrCat("token ", Quote(key_), " has ", value,
                              " as its id; allowed is a whole number from 0 to 2^31 - 1")
                     : StrCat("is ", value, "; allowed is an object of tokens and ids");
    return false;
  }

  TokenIds* const ids_;
  bool inside_ = false;
  std::string key_;
  std::string error_;
};

absl::StatusOr<TokenIds> ParseTokenIds(std::string_view file, std::string_view json) {
  RETURN_IF_ERROR(CheckNoZeroByte(file, json));
  TokenIds ids;
  TokenIdsHandler handler(&ids);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &handler)) return Error(file, handler.error());
  return ids;
}

// Collects the special tokens of the optional files: `ids` of those that are given with one, `names` of the others.
struct SpecialTokens {
  std::vector<std::pair<std::string, int64_t>> ids;
  std::vector<std::pair<std::string, std::string>> names;  // token, where it is named
  std::vector<std::string_view> id_files;                  // of `ids`
};

// A token as "text" or {"content": "text", …}; null and other kinds are none.
const std::string* TokenText(const nlohmann::json& value) {
  if (value.is_string()) return value.get_ptr<const std::string*>();
  if (!value.is_object()) return nullptr;
  const auto content = value.find("content");
  return content != value.end() && content->is_string() ? content->get_ptr<const std::string*>() : nullptr;
}

absl::Status CollectSpecial(std::string_view file, std::string_view text, SpecialTokens* special) {
  RETURN_IF_ERROR(CheckNoZeroByte(file, text));
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& exception) {
    return Error(file, StrCat("is not JSON: ", WithoutTag(exception.what())));
  }
  if (!json.is_object()) return Error(file, StrCat("is ", json.type_name(), "; allowed is an object"));
  for (const auto& [key, value] : json.items()) {
    if (key == "added_tokens_decoder") {
      if (!value.is_object()) return Error(file, "added_tokens_decoder is not an object of ids and tokens");
      for (const auto& [id_text, token] : value.items()) {
        int32_t id = 0;
        const char* end = id_text.data() + id_text.size();
        const auto [stop, problem] = std::from_chars(id_text.data(), end, id);
        const std::string* name = TokenText(token);
        if (problem != std::errc() || stop != end || id < 0 || name == nullptr) {
          return Error(file, StrCat("added_tokens_decoder has an entry ", Quote(id_text),
                                    "; allowed is \"id\": {\"content\": \"token\", …} with an id from 0 to 2^31 - 1"));
        }
        special->ids.emplace_back(*name, id);
        special->id_files.push_back(file);
      }
    } else if (key == "additional_special_tokens" && value.is_array()) {
      for (const nlohmann::json& token : value) {
        if (const std::string* name = TokenText(token)) special->names.emplace_back(*name, StrCat(file, ": ", key));
      }
    } else if (key.size() > 6 && key.ends_with("_token")) {  // bos_token, eos_token, unk_token, pad_token, …
      if (const std::string* name = TokenText(value)) special->names.emplace_back(*name, StrCat(file, ": ", key));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<SpecialTokens> ParseSpecialTokens(const TokenizerFiles& files) {
  SpecialTokens special;
  if (files.added_tokens_json) {
    ASSIGN_OR_RETURN(const TokenIds added, ParseTokenIds(kAdded, *files.added_tokens_json));
    for (const auto& [token, id] : added) special.ids.emplace_back(token, id);
    std::sort(special.ids.begin(), special.ids.end());
    special.id_files.assign(special.ids.size(), kAdded);
  }
  if (files.tokenizer_config_json) {
    RETURN_IF_ERROR(CollectSpecial(kTokenizerConfig, *files.tokenizer_config_json, &special));
  }
  if (files.special_tokens_map_json) {
    RETURN_IF_ERROR(CollectSpecial(kSpecialMap, *files.special_tokens_map_json, &special));
  }
  return special;
}

// Adds the special tokens that vocab.json lacks to `ids`, and returns the names of all.
absl::StatusOr<std::set<std::string>> AddSpecialTokens(const SpecialTokens& special, TokenIds* ids) {
  std::set<std::string> names;
  for (size_t i = 0; i < special.ids.size(); ++i) {
    const auto& [token, id] = special.ids[i];
    const auto [entry, added] = ids->emplace(token, id);
    if (entry->second != id) {
      return Error(special.id_files[i],
                   StrCat("token ", Quote(token), " has id ", id, ", but ", entry->second, " elsewhere"));
    }
    names.insert(token);
  }
  for (const auto& [token, where] : special.names) {
    if (!ids->contains(token)) return Error(where, StrCat(Quote(token), " is not in vocab.json or added_tokens.json"));
    names.insert(token);
  }
  if (ids->contains("<|endoftext|>")) names.insert("<|endoftext|>");
  return names;
}

// Ids are 0 to N - 1, each once, and each token has bytes.
absl::Status FillTokens(const TokenIds& ids, const std::set<std::string>& special, Vocabulary* vocabulary) {
  if (ids.empty()) return Error(kVocab, "has no tokens");
  const int64_t count = static_cast<int64_t>(ids.size());
  std::vector<const std::string*> tokens(ids.size(), nullptr);
  for (const auto& [token, id] : ids) {
    if (id >= count) {
      return Error(kVocab, StrCat("token ", Quote(token), " has id ", id, ", but with ", count,
                                  " tokens ids go from 0 to ", count - 1, " without holes"));
    }
    if (tokens[id] != nullptr) {
      const auto [first, second] = std::minmax(*tokens[id], token);
      return Error(kVocab, StrCat("tokens ", Quote(first), " and ", Quote(second), " both have id ", id));
    }
    tokens[id] = &token;
  }
  vocabulary->token_bytes.resize(ids.size());
  for (int64_t id = 0; id < count; ++id) {
    const std::string& token = *tokens[id];
    if (token.empty()) return Error(kVocab, StrCat("the token with id ", id, " is empty"));
    if (special.contains(token)) {
      vocabulary->special.insert(static_cast<int32_t>(id));
      vocabulary->token_bytes[id] = token;
      continue;
    }
    std::optional<std::string> bytes = BytesOfSpelling(token);
    if (!bytes) {
      return Error(kVocab, StrCat("token ", Quote(token), " (id ", id,
                                  ") has a character outside the byte alphabet; allowed are GPT-2's 256 characters for "
                                  "bytes, in which a space is U+0120"));
    }
    vocabulary->token_bytes[id] = *std::move(bytes);
  }
  return absl::OkStatus();
}

absl::Status FillByteIds(const TokenIds& ids, Vocabulary* vocabulary) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string token = SpellByte(static_cast<uint8_t>(byte));
    const auto found = ids.find(token);
    if (found == ids.end()) {
      return Error(kVocab, StrCat("has no token for the byte ", byte, " (", Quote(token), "); all 256 are needed"));
    }
    vocabulary->byte_ids[byte] = static_cast<int32_t>(found->second);
  }
  return absl::OkStatus();
}

absl::Status FillMerges(std::string_view text, const TokenIds& ids, Vocabulary* vocabulary) {
  absl::flat_hash_map<std::pair<int64_t, int64_t>, int64_t> lines;  // of each pair
  int64_t number = 0;
  while (!text.empty()) {
    const size_t length = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, length);
    text.remove_prefix(std::min(text.size(), length + 1));
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (number == 1 && line.starts_with("#version")) continue;
    if (line.empty() && text.find_first_not_of("\r\n") == std::string_view::npos) break;  // blank lines at the end

    const std::string where = StrCat("merges.txt: line ", number);
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == line.size() ||
        line.find(' ', space + 1) != std::string_view::npos) {
      return Error(where, StrCat("is ", Quote(line), "; allowed is 'LEFT RIGHT', two tokens with one space between"));
    }
    const std::string left(line.substr(0, space)), right(line.substr(space + 1)), result = left + right;
    for (const std::string* token : {&left, &right, &result}) {
      if (ids.contains(*token)) continue;
      return Error(where, StrCat("merges ", Quote(left), " and ", Quote(right), ", but ", Quote(*token),
                                 " is not in vocab.json; do both files belong to one tokenizer?"));
    }
    const MergeRule rule{.left = static_cast<int32_t>(ids.at(left)),
                         .right = static_cast<int32_t>(ids.at(right)),
                         .result = static_cast<int32_t>(ids.at(result))};
    const auto [entry, added] = lines.emplace(std::pair<int64_t, int64_t>(rule.left, rule.right), number);
    if (!added)
      return Error(where, StrCat("merges ", Quote(left), " and ", Quote(right), " as line ", entry->second, " does"));
    vocabulary->merges.push_back(rule);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Vocabulary> ParseVocabulary(const TokenizerFiles& files) {
  Vocabulary vocabulary;
  ASSIGN_OR_RETURN(TokenIds ids, ParseTokenIds(kVocab, files.vocab_json));
  ASSIGN_OR_RETURN(const SpecialTokens special, ParseSpecialTokens(files));
  ASSIGN_OR_RETURN(const std::set<std::string> names, AddSpecialTokens(special, &ids));
  RETURN_IF_ERROR(FillTokens(ids, names, &vocabulary));
  RETURN_IF_ERROR(FillByteIds(ids, &vocabulary));
  RETURN_IF_ERROR(FillMerges(files.merges_txt, ids, &vocabulary));
  return vocabulary;
}

}  // namespace smt
