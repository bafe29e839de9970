// GPT-2's spelling of bytes as printable characters, in which vocab.json and merges.txt are written: the printable
// Latin-1 characters stand for themselves ("!".."~", "¡".."¬", "®".."ÿ"), the other 68 bytes, in order, for U+0100 and
// up, so that a space is "Ġ" and a newline "Ċ".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace smt {

// The character for `byte`, UTF-8.
std::string SpellByte(uint8_t byte);

// The bytes that `spelling` (UTF-8) stands for; nullopt if it is not UTF-8 or holds a character outside the alphabet.
std::optional<std::string> BytesOfSpelling(std::string_view spelling);

}  // namespace smt
