// Builds files byte by byte, as no writer would.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace smt {

inline std::string RawSafetensors(uint64_t header_length, std::string_view header, std::string_view data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(header_length >> (8 * i)));
  file += header;
  file += data;
  return file;
}

inline std::string RawSafetensors(std::string_view header, std::string_view data) {
  return RawSafetensors(header.size(), header, data);
}

}  // namespace smt
