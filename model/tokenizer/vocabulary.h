// Tokens, special tokens and merges, read from a tokenizer's files and checked against each other.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/tokenizer_files.h"

namespace smt {

struct Vocabulary {
  std::vector<std::string> token_bytes;  // index = id; never empty strings
  std::array<int32_t, 256> byte_ids;     // the token of each single byte
  std::set<int32_t> special;             // ids
  std::vector<MergeRule> merges;
};

// INVALID_ARGUMENT, beginning with the file's name (merges.txt with the line), for: what is not JSON or of another
// form; a token named twice, an id used twice, negative or not below the number of tokens; a token outside the byte
// alphabet that is not special; a byte without token; a merge that is not two tokens with one space between them, whose
// parts or result are not in the vocabulary, or that is there twice; a special token that is nowhere defined.
//
// Special are the tokens of the three optional files and, as in GPT-2 itself, "<|endoftext|>" where there is one. Their
// bytes are their text as it stands, not in the byte alphabet. Those of added_tokens.json and added_tokens_decoder may
// have ids beyond vocab.json's, without holes.
absl::StatusOr<Vocabulary> ParseVocabulary(const TokenizerFiles& files);

}  // namespace smt
