#include "model/tokenizer/bpe.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <queue>
#include <utility>

namespace smt {
namespace {

constexpr size_t kShort = 48;  // ids; up to about here the quadratic way is faster

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

BpeMerges::BpeMerges(std::vector<MergeRule> rules) : rules_(std::move(rules)) {
  rule_of_pair_.reserve(rules_.size());
  for (size_t i = 0; i < rules_.size(); ++i) {
    rule_of_pair_.emplace(PairKey(rules_[i].left, rules_[i].right), static_cast<uint32_t>(i));
  }
}

uint32_t BpeMerges::RuleFor(int32_t left, int32_t right) const {
  const auto found = rule_of_pair_.find(PairKey(left, right));
  return found == rule_of_pair_.end() ? kNoRule : found->second;
}

void BpeMerges::Merge(std::vector<int32_t>* ids) const { ids->size() <= kShort ? MergeShort(ids) : MergeLong(ids); }

void BpeMerges::MergeShort(std::vector<int32_t>* ids) const {
  std::vector<int32_t>& v = *ids;
  if (v.size() < 2) return;
  std::vector<uint32_t> rules(v.size(), kNoRule);  // of v[i] and v[i + 1]; the last has none
  for (size_t i = 0; i + 1 < v.size(); ++i) rules[i] = RuleFor(v[i], v[i + 1]);
  constexpr uint32_t kStale = kNoRule - 1;
  while (true) {
    const uint32_t rule = *std::min_element(rules.begin(), rules.end());
    if (rule == kNoRule) return;
    size_t out = 0;
    for (size_t i = 0; i < v.size(); ++out) {
      if (rules[i] != rule) {
        v[out] = v[i];
        rules[out] = rules[i];
        ++i;
        continue;
      }
      v[out] = rules_[rule].result;
      rules[out] = kStale;
      if (out > 0) rules[out - 1] = kStale;
      i += 2;
    }
    v.resize(out);
    rules.resize(out);
    rules.back() = kNoRule;
    for (size_t i = 0; i + 1 < out; ++i) {
      if (rules[i] == kStale) rules[i] = RuleFor(v[i], v[i + 1]);
    }
  }
}

// The ids are a doubly linked list; a heap holds (rule, position) of every pair that has a rule. Entries of one rule
// come out left to right and are all applied before the pairs they make go in, so that a rule is finished before an
// earlier one that it made possible: what the rounds of MergeShort do. Entries outdated by another merge are told by
// their ids.
void BpeMerges::MergeLong(std::vector<int32_t>* ids) const {
  std::vector<int32_t>& v = *ids;
  if (v.size() < 2) return;
  constexpr uint32_t kNone = UINT32_MAX;
  constexpr int32_t kGone = -1;
  const auto size = static_cast<uint32_t>(v.size());
  std::vector<uint32_t> next(size), previous(size);
  std::vector<uint64_t> entries;  // rule << 32 | position
  for (uint32_t i = 0; i < size; ++i) {
    next[i] = i + 1 < size ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
    if (next[i] == kNone) continue;
    const uint32_t rule = RuleFor(v[i], v[i + 1]);
    if (rule != kNoRule) entries.push_back(uint64_t{rule} << 32 | i);
  }
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> heap(std::greater<>{}, std::move(entries));

  std::vector<uint64_t> made;
  const auto note = [&](uint32_t left) {
    if (left == kNone || next[left] == kNone) return;
    const uint32_t rule = RuleFor(v[left], v[next[left]]);
    if (rule != kNoRule) made.push_back(uint64_t{rule} << 32 | left);
  };
  while (!heap.empty()) {
    const uint64_t index = heap.top() >> 32;
    const MergeRule& rule = rules_[index];
    made.clear();
    for (; !heap.empty() && heap.top() >> 32 == index; heap.pop()) {
      const auto i = static_cast<uint32_t>(heap.top());
      const uint32_t right = next[i];
      if (v[i] != rule.left || right == kNone || v[right] != rule.right) continue;
      v[i] = rule.result;
      v[right] = kGone;
      next[i] = next[right];
      if (next[i] != kNone) previous[next[i]] = i;
      note(previous[i]);
      note(i);
    }
    for (const uint64_t entry : made) heap.push(entry);
  }
  v.erase(std::remove(v.begin(), v.end(), kGone), v.end());
}

}  // namespace smt
