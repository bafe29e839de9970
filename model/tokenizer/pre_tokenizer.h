// Cuts text into the pieces within which BPE merges, as GPT-2 does with the pattern
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// in Python's `regex` module: \p{L} and \p{N} by general category, \s by the property White_Space, of ICU's Unicode.
#pragma once

#include <cstddef>
#include <string_view>

namespace smt {

// The end of the piece that starts at `begin` (< text.size()), past it by at least one byte. Text is UTF-8; a byte that
// is not part of valid UTF-8 counts as a character that is no letter, number or space. Starting from 0, pieces cover
// the text without gaps; linear time over the whole text.
size_t PieceEnd(std::string_view text, size_t begin);

}  // namespace smt
