// The undisturbed run: what the requests of a book give on a server that nothing happens to.
#pragma once

#include <atomic>
#include <string>

#include "client/client.h"
#include "tests/e2e/chaos/book.h"
#include "tests/e2e/chaos/findings.h"

namespace smt::testing {

class Reference {
 public:
  Reference(const std::string& address, Findings* findings);
  // Runs what is new in the book again and compares ids, text, digests and ends; notes each turn's prompt. A turn that
  // was cut short must equal one that was asked for as many ids as it came to.
  void Compare(Book* book);
  // Deletes its sessions.
  void Forget(const Book& book);

 private:
  void CompareTurn(Entry* entry);
  bool Expect(const std::string& what, const client::Error& error);
  void Remove(const std::string& session);

  client::Client client_;
  Findings* const findings_;
};

}  // namespace smt::testing
