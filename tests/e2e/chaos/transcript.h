// What a client has of one stream, as it would store it, and the checks that each event must pass: the next chunk
// begins where the last one ended, the digest goes with it, and `finished` agrees with both.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "smt/v1/generation.pb.h"
#include "tests/e2e/chaos/findings.h"

namespace smt::testing {

class Transcript {
 public:
  // `who` names the session and request in failures. Where `start_position` is not -1 the stream must begin there.
  // With TOKEN nothing may be sent before it is durable, with TURN not the end.
  Transcript(Findings* findings, std::string who, int64_t start_position, v1::Durability durability)
      : findings_(findings), who_(std::move(who)), start_position_(start_position), durability_(durability) {}

  void Take(const v1::GenerationEvent& event);
  // Its tokens do not count as a stream's.
  void Quiet() { counted_ = false; }
  // It had begun, as GetGeneration says, though `started` was never read.
  void Began(int64_t start_position, int64_t prompt_tokens);
  // Forgets what lies past the last chunk that ended at or before so many ids; how many were forgotten.
  int64_t Rewind(int64_t ids);
  // That `other`, another reader's of the same stream, has the same where both have something; and the same end, if
  // both have one and `ends`.
  void Compare(const Transcript& other, const std::string& what, bool ends = true) const;

  bool known() const { return first_ >= 0; }
  bool finished() const { return finished_.has_value(); }
  int64_t start_position() const { return start_position_; }
  int64_t prompt_tokens() const { return first_ - start_position_; }
  int64_t first() const { return first_; }        // position before the first generated id
  int64_t position() const { return position_; }  // of the last id
  const std::string& digest() const { return digest_; }
  int64_t durable() const { return durable_; }  // the last position that was said to be on disk
  const std::vector<int32_t>& ids() const { return ids_; }
  const std::string& text() const { return text_; }
  const std::vector<int32_t>& echo() const { return echo_; }
  const v1::GenerationFinished& end() const { return *finished_; }
  bool cancelled() const { return finished_ && finished_->reason() == v1::FINISH_REASON_CANCELLED; }
  // At a token that depends on when something happened.
  bool cut_short() const { return cancelled() || (finished_ && finished_->reason() == v1::FINISH_REASON_MAX_DURATION); }
  const std::string& who() const { return who_; }

 private:
  void TakeStarted(const v1::GenerationStarted& started);
  void TakeChunk(const v1::GenerationChunk& chunk);
  void TakeFinished(const v1::GenerationFinished& finished);
  void Fail(std::atomic<int64_t>& count, const std::string& what, int64_t n = 1) const {
    findings_->Fail(count, who_ + ": " + what, n);
  }

  struct Mark {  // the end of a chunk
    size_t ids = 0, text = 0;
    std::string digest;
  };
  Findings* findings_;
  std::string who_;
  int64_t start_position_;
  v1::Durability durability_;
  bool counted_ = true;
  int64_t first_ = -1, position_ = -1, durable_ = 0;
  std::string digest_;
  std::vector<int32_t> ids_, echo_;
  std::string text_;
  std::vector<Mark> marks_;
  std::optional<v1::GenerationFinished> finished_;
};

}  // namespace smt::testing
