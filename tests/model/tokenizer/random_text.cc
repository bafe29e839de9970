#include "tests/model/tokenizer/random_text.h"

#include <unicode/utf8.h>

#include <cstdint>
#include <iterator>

namespace smt {
namespace {

void AppendCharacter(UChar32 character, std::string* out) {
  uint8_t bytes[4];
  int32_t length = 0;
  U8_APPEND_UNSAFE(bytes, length, character);
  out->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

const char* const kPieces[] = {
    "'s", "'t",  "'re", "'ve",           "'m",       "'ll",      "'d", "'S",   "'LL", "'l",   "'r",   "'", "’s", " '",
    "''", " ",   "  ",  "   ",           "\n",       "\r\n",     "\t", " \n ", "a",   "Word", " the", "1", "42", "3.14",
    "!",  "...", "_",   "<|endoftext|>", "\xc3\xa9", "e\xcc\x81"};
// Where classes are easily mistaken: spaces of all kinds and what only looks like one, numbers that are no digits,
// letters that are modifiers, marks, format characters.
const UChar32 kCharacters[] = {0x1c,   0x1f,   0x0b,   0x0c,   0x85,     0xa0,    0x1680,  0x180e,  0x2000, 0x200a,
                               0x200b, 0x200d, 0x2028, 0x2029, 0x202f,   0x205f,  0x2060,  0x3000,  0xfeff, 0xb2,
                               0xbd,   0x2167, 0x2488, 0x0660, 0x0967,   0x4e09,  0x3007,  0xaa,    0x2b0,  0x1c5,
                               0x3042, 0xac00, 0x0e01, 0x0e31, 0x0301,   0x093e,  0x1f600, 0x1f468, 0xfe0f, 0x20ac,
                               0xe000, 0x378,  0xfffd, 0xffff, 0x10ffff, 0x1d7d8, 0x16a6,  0x0f33,  0x2460, 0x0};

}  // namespace

std::string RandomText(std::mt19937_64& rng, size_t length) {
  std::string text;
  for (size_t i = 0; i < length; ++i) {
    switch (rng() % 5) {
      case 0:
      case 1:
        text += kPieces[rng() % std::size(kPieces)];
        break;
      case 2:
        AppendCharacter(kCharacters[rng() % std::size(kCharacters)], &text);
        break;
      case 3:
        AppendCharacter(static_cast<UChar32>(rng() % 0x800), &text);
        break;
      default: {
        const auto character = static_cast<UChar32>(rng() % 0x110000);
        AppendCharacter(U_IS_SURROGATE(character) ? 'x' : character, &text);
      }
    }
  }
  return text;
}

std::string RandomBytes(std::mt19937_64& rng, size_t length) {
  std::string bytes;
  while (bytes.size() < length) {
    if (rng() % 2 == 0) {
      bytes.push_back(static_cast<char>(rng()));
    } else {
      const std::string text = RandomText(rng, 2);
      bytes += text.substr(rng() % 2, rng() % 5);
    }
  }
  bytes.resize(length);
  return bytes;
}

}  // namespace smt
