// Tokenizer files for models whose tokens are bytes: vocab.json with the 256 bytes in GPT-2's printable spelling (ids
// 0-255 by GPT-2's order of them, "!" first) and "<|endoftext|>" (256); merges.txt without merges.
#pragma once

#include <string>

namespace smt {

std::string ByteVocabularyJson();
std::string EmptyMerges();

}  // namespace smt
