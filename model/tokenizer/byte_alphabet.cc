#include "model/tokenizer/byte_alphabet.h"

#include <unicode/utf8.h>

#include <array>

namespace smt {
namespace {

constexpr int kCharacters = 256 + 68;  // U+0000..U+0143

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Alphabet {
  std::array<int, 256> character_of_byte{};
  std::array<int, kCharacters> byte_of_character{};  // -1: not in the alphabet

  constexpr Alphabet() {
    byte_of_character.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const int character = StandsForItself(byte) ? byte : next++;
      character_of_byte[byte] = character;
      byte_of_character[character] = byte;
    }
  }
};
constexpr Alphabet kAlphabet;

}  // namespace

std::string SpellByte(uint8_t byte) {
  const int character = kAlphabet.character_of_byte[byte];
  if (character < 0x80) return std::string(1, static_cast<char>(character));
  return {static_cast<char>(0xc0 | character >> 6), static_cast<char>(0x80 | (character & 0x3f))};
}

std::optional<std::string> BytesOfSpelling(std::string_view spelling) {
  std::string bytes;
  for (size_t i = 0; i < spelling.size();) {
    UChar32 character;
    U8_NEXT(spelling.data(), i, spelling.size(), character);
    if (character < 0 || character >= kCharacters || kAlphabet.byte_of_character[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte_of_character[character]));
  }
  return bytes;
}

}  // namespace smt
