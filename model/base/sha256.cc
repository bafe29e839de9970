#include "model/base/sha256.h"

#include <openssl/evp.h>

#include <cstdlib>

namespace smt {

struct Sha256::Context {
  EVP_MD_CTX* md = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(md); }
};

namespace {
// OpenSSL fails here only without memory or without SHA-256, neither of which a caller can do anything about.
void Must(int ok) {
  if (ok != 1) std::abort();
}
}  // namespace

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  Must(EVP_DigestInit_ex(context_->md, EVP_sha256(), nullptr));
}

Sha256::~Sha256() = default;

void Sha256::Add(std::string_view bytes) { Must(EVP_DigestUpdate(context_->md, bytes.data(), bytes.size())); }

void Sha256::AddPiece(std::string_view bytes) {
  char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(static_cast<uint64_t>(bytes.size()) >> (8 * i));
  Add({length, sizeof(length)});
  Add(bytes);
}

std::string Sha256::HexDigest() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  Must(EVP_DigestFinal_ex(context_->md, digest, &size));
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    hex += kDigits[digest[i] >> 4];
    hex += kDigits[digest[i] & 15];
  }
  return hex;
}

}  // namespace smt
