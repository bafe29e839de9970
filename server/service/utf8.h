// UTF-8 for text that is sent in pieces: checking, and replacing what is none by U+FFFD as browsers do (one for each
// maximal part of an ill-formed sequence).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace smt {

bool IsValidUtf8(std::string_view bytes);

// Appends `bytes` with every ill-formed part replaced. An incomplete sequence at the end counts as ill-formed.
void AppendSanitizedUtf8(std::string_view bytes, std::string* out);

// Number of bytes at the end that begin a sequence which more bytes could complete: 0 to 3. Cutting text where this is
// 0 and sanitising the pieces gives the same as sanitising the whole.
size_t IncompleteUtf8Suffix(std::string_view bytes);

}  // namespace smt
