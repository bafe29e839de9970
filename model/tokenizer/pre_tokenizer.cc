#include "model/tokenizer/pre_tokenizer.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <cstdint>

namespace smt {
namespace {

enum class Kind : uint8_t { kLetter, kNumber, kSpace, kOther };

Kind KindOf(UChar32 character) {
  if (character < 0) return Kind::kOther;
  const uint32_t category = U_GET_GC_MASK(character);
  if ((category & U_GC_L_MASK) != 0) return Kind::kLetter;
  if ((category & U_GC_N_MASK) != 0) return Kind::kNumber;
  return u_isUWhiteSpace(character) ? Kind::kSpace : Kind::kOther;
}

struct AsciiKinds {
  Kind kinds[128];
  AsciiKinds() {
    for (int c = 0; c < 128; ++c) kinds[c] = KindOf(c);
  }
};

// The kind of the character at *i, which is moved past it.
Kind NextKind(std::string_view text, size_t* i) {
  static const AsciiKinds ascii;
  const auto first = static_cast<unsigned char>(text[*i]);
  if (first < 128) {
    ++*i;
    return ascii.kinds[first];
  }
  UChar32 character;
  U8_NEXT(text.data(), *i, text.size(), character);  // negative where invalid
  return KindOf(character);
}

// The end of the run of characters of `kind` from `i` on.
size_t RunEnd(std::string_view text, size_t i, Kind kind) {
  while (i < text.size()) {
    size_t next = i;
    if (NextKind(text, &next) != kind) break;
    i = next;
  }
  return i;
}

// The length of 's, 't, 're, 've, 'm, 'll or 'd at the start of `text`, or 0.
size_t ContractionLength(std::string_view text) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  if (text[1] == 's' || text[1] == 't' || text[1] == 'm' || text[1] == 'd') return 2;
  const std::string_view two = text.substr(1, 2);
  return two == "re" || two == "ve" || two == "ll" ? 3 : 0;
}

// \s+(?!\S)|\s+ at `begin`, where a space is: the whole run at the end of the text; elsewhere all but its last
// character, which may belong to the next piece, unless the run is that one character.
size_t SpacesEnd(std::string_view text, size_t begin) {
  size_t last = begin, end = begin;  // the run's last character is [last, end)
  while (end < text.size()) {
    size_t next = end;
    if (NextKind(text, &next) != Kind::kSpace) return last == begin ? end : last;
    last = end;
    end = next;
  }
  return end;
}

}  // namespace

size_t PieceEnd(std::string_view text, size_t begin) {
  if (const size_t length = ContractionLength(text.substr(begin)); length > 0) return begin + length;
  size_t i = begin;
  Kind kind = NextKind(text, &i);
  if (text[begin] == ' ' && i < text.size()) kind = NextKind(text, &i);  // the optional space before a run
  if (kind == Kind::kSpace) return SpacesEnd(text, begin);
  return RunEnd(text, i, kind);
}

}  // namespace smt
