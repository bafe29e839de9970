// smt_model tokenize and detokenize.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tools/commands.h"
#include "model/tools/ids_json.h"

namespace smt::tools {
namespace {

// The folder's tokenizer; a config.json, where there is one, says which ids are special besides.
absl::StatusOr<Tokenizer> LoadTokenizer(const std::string& model_dir) {
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(model_dir));
  const absl::StatusOr<StrideHybridConfig> config = StrideHybridConfig::Load(model_dir);
  if (config.ok()) {
    for (const auto& id : {config->bos_token_id, config->eos_token_id}) {
      if (id) RETURN_IF_ERROR(tokenizer.MarkSpecial(static_cast<int32_t>(*id)));
    }
  }
  return tokenizer;
}

// Calls `each` with every line, without its end. A last line without an end counts, an empty one after the last end
// does not.
absl::Status ForEachLine(const std::string& text, const std::function<absl::Status(std::string_view)>& each) {
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line(text.data() + begin, end - begin);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    const absl::Status status = each(line);
    ++number;
    if (!status.ok()) return absl::Status(status.code(), StrCat("line ", number, " of stdin: ", status.message()));
    begin = end + 1;
  }
  return absl::OkStatus();
}

void Write(std::string_view bytes) { std::fwrite(bytes.data(), 1, bytes.size(), stdout); }

}  // namespace

absl::StatusOr<std::string> ReadStdin() {
  std::string text;
  char buffer[1 << 16];
  size_t count = 0;
  while ((count = std::fread(buffer, 1, sizeof(buffer), stdin)) > 0) text.append(buffer, count);
  if (std::ferror(stdin)) return absl::UnavailableError(StrCat("cannot read stdin: ", std::strerror(errno)));
  return text;
}

absl::Status RunTokenize(const TokenizeOptions& options) {
  ASSIGN_OR_RETURN(const Tokenizer tokenizer, LoadTokenizer(options.model_dir));
  ASSIGN_OR_RETURN(const std::string text, ReadStdin());
  const EncodeOptions encode{options.parse_special};
  if (!options.jsonl) {
    Write(IdsToJson(tokenizer.Encode(text, encode)) + "\n");
    return absl::OkStatus();
  }
  return ForEachLine(text, [&](std::string_view line) -> absl::Status {
    const nlohmann::json value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!value.is_string()) {
      return absl::InvalidArgumentError(StrCat("\"", fields::ShowValue(line), "\" is not a JSON string"));
    }
    Write(IdsToJson(tokenizer.Encode(value.get_ref<const std::string&>(), encode)) + "\n");
    return absl::OkStatus();
  });
}

absl::Status RunDetokenize(const TokenizeOptions& options) {
  ASSIGN_OR_RETURN(const Tokenizer tokenizer, LoadTokenizer(options.model_dir));
  ASSIGN_OR_RETURN(const std::string text, ReadStdin());
  const auto decode = [&](std::string_view json) -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, IdsFromJson(json));
    return tokenizer.Decode(ids);
  };
  if (!options.jsonl) {
    ASSIGN_OR_RETURN(const std::string bytes, decode(text));
    Write(bytes);
    return absl::OkStatus();
  }
  return ForEachLine(text, [&](std::string_view line) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string bytes, decode(line));
    // JSON is UTF-8: bytes that are not become U+FFFD.
    Write(nlohmann::json(bytes).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    return absl::OkStatus();
  });
}

}  // namespace smt::tools
