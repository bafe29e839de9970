// Text and bytes made to find mistakes: rich in borders between letters, numbers, spaces and the rest.
#pragma once

#include <cstddef>
#include <random>
#include <string>

namespace smt {

// Valid UTF-8 of about `length` characters: scripts, marks, every kind of space, contractions, emoji, unassigned ones.
std::string RandomText(std::mt19937_64& rng, size_t length);

// Any bytes: uniform, or pieces of UTF-8 cut and mixed.
std::string RandomBytes(std::mt19937_64& rng, size_t length);

}  // namespace smt
