#include "model/tokenizer/incremental_decoder.h"

#include <cstddef>

namespace smt {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

std::string IncrementalDecoder::Push(int32_t id) {
  if (id < 0 || static_cast<size_t>(id) >= token_bytes_->size()) return "";
  return PushBytes((*token_bytes_)[id]);
}

std::string IncrementalDecoder::PushBytes(std::string_view bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto byte = static_cast<uint8_t>(bytes[i]);
    if (missing_ > 0) {
      if (byte < low_ || byte > high_) {
        out += Flush();  // broken off; the byte is looked at afresh
        --i;
        continue;
      }
      low_ = 0x80;
      high_ = 0xbf;
      pending_.push_back(bytes[i]);
      if (--missing_ == 0) {
        out += pending_;
        pending_.clear();
      }
      continue;
    }
    if (byte < 0x80) {
      out.push_back(bytes[i]);
      continue;
    }
    if (byte >= 0xc2 && byte <= 0xdf) {
      missing_ = 1;
    } else if (byte >= 0xe0 && byte <= 0xef) {
      missing_ = 2;
      if (byte == 0xe0) low_ = 0xa0;   // below: overlong
      if (byte == 0xed) high_ = 0x9f;  // above: surrogates
    } else if (byte >= 0xf0 && byte <= 0xf4) {
      missing_ = 3;
      if (byte == 0xf0) low_ = 0x90;
      if (byte == 0xf4) high_ = 0x8f;  // above: past U+10FFFF
    } else {
      out += kReplacement;
      continue;
    }
    pending_.push_back(bytes[i]);
  }
  return out;
}

std::string IncrementalDecoder::Flush() {
  const bool held = missing_ > 0;
  pending_.clear();
  missing_ = 0;
  low_ = 0x80;
  high_ = 0xbf;
  return held ? std::string(kReplacement) : std::string();
}

}  // namespace smt
