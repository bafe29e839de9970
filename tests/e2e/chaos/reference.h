// The undisturbed run: what a journal's requests give on a server that nothing happens to.
#pragma once

#include <atomic>
#include <string>

#include "client/client.h"
#include "tests/e2e/chaos/findings.h"
#include "tests/e2e/chaos/journal.h"

namespace smt::testing {

class Reference {
 public:
  Reference(const std::string& address, Findings* findings);
  // Runs it again and compares ids, text, digests and ends; notes each turn's prompt. A turn that was cancelled must
  // equal one that was asked for as many ids as it came to.
  void Compare(Journal* journal);

 private:
  void CompareTurn(const std::string& session, Entry* entry);

  client::Client client_;
  Findings* const findings_;
};

}  // namespace smt::testing
