// What a request still has to absorb before it can draw, cut into plan items: first ids that the session's log holds
// but its state does not, then the prompt, scored on the way when its log-probabilities were asked for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "server/engine/executor.h"

namespace smt {

class PromptFeed {
 public:
  struct Options {
    bool draw = false;         // the last item draws the first id
    bool score = false;        // log-probabilities of the prompt's ids
    bool score_first = false;  // of its first id too; needs something absorbed or `before`
  };
  struct Item {
    std::span<const int32_t> ids;  // valid while the feed lives
    std::span<const int32_t> targets;
    Want want = Want::kNothing;
  };

  PromptFeed() = default;
  PromptFeed(std::vector<int32_t> before, std::span<const int32_t> prompt, Options options);
  PromptFeed(PromptFeed&&) = default;
  PromptFeed& operator=(PromptFeed&&) = default;

  // Nothing is left to do.
  bool done() const { return at_ == static_cast<int64_t>(ids_.size()) && (!options_.draw || drawn_); }
  // The next item, with at most `budget` ids to absorb or, when it scores, `score_budget`; both >= 1. Not when done().
  Item Next(int64_t budget, int64_t score_budget) const;
  // The item was carried out.
  void Advance(const Item& item);

  int64_t prompt_done() const { return at_ > before_ ? at_ - before_ : 0; }  // ids of the prompt absorbed
  // Index in the prompt of an item's first target. Before Advance.
  int64_t FirstTarget(const Item& item) const { return at_ - before_ + (item.ids.empty() ? 0 : 1); }
  std::span<const int32_t> rest() const { return std::span(ids_).subspan(static_cast<size_t>(at_)); }

 private:
  std::vector<int32_t> ids_;  // before, then the prompt
  int64_t before_ = 0;
  int64_t at_ = 0;              // absorbed
  int64_t score_begin_ = 0;     // from here on the id after each absorbed one is a target
  bool score_present_ = false;  // the first id is to be scored at the position as it is
  bool drawn_ = false;
  Options options_;
};

}  // namespace smt
