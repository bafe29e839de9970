// SHA-256 over pieces, as lower-case hexadecimal digits. Links OpenSSL: target smt_sha256.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace smt {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(std::string_view bytes);
  // A piece preceded by its length (8 bytes, little-endian), so that pieces cannot run into each other.
  void AddPiece(std::string_view bytes);
  // 64 digits. Call once, last.
  std::string HexDigest();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace smt
