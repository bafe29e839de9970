#include "model/import/byte_vocabulary.h"

#include <nlohmann/json.hpp>

namespace smt {
namespace {

std::string Utf8(uint32_t code_point) {  // below U+0800
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 0x3F))};
}

bool SpelledAsItself(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
}

}  // namespace

std::string ByteVocabularyJson() {
  nlohmann::ordered_json vocabulary;
  int id = 0;
  for (int byte = 0; byte < 256; ++byte) {
    if (SpelledAsItself(byte)) vocabulary[Utf8(static_cast<uint32_t>(byte))] = id++;
  }
  uint32_t stand_in = 256;  // the others are spelled U+0100, U+0101 … in the order of their values
  for (int byte = 0; byte < 256; ++byte) {
    if (!SpelledAsItself(byte)) vocabulary[Utf8(stand_in++)] = id++;
  }
  vocabulary["<|endoftext|>"] = id;
  return vocabulary.dump() + "\n";
}

std::string EmptyMerges() { return "#version: 0.2\n"; }

}  // namespace smt
