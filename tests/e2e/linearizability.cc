#include "tests/e2e/linearizability.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <unordered_set>

#include "absl/strings/str_cat.h"

namespace smt::testing {
namespace {

constexpr size_t kRememberedTurns = 16;  // that can be undone

// One copy of a session.
struct State {
  bool exists = false;
  int64_t position = 0;
  std::vector<int64_t> turns;  // where they began

  std::string Key() const {
    std::string key = absl::StrCat(exists, ":", position);
    for (const int64_t turn : turns) absl::StrAppend(&key, ",", turn);
    return key;
  }
};

// The state after the call, if it may have this result in `state`.
std::optional<State> Apply(State state, const Operation& op) {
  using Kind = Operation::Kind;
  using Result = Operation::Result;
  const bool unknown = op.result == Result::kUnknown;
  const auto told = [&](const State& after) { return unknown || op.position == after.position; };
  if (op.result == Result::kNotFound) return state.exists ? std::nullopt : std::optional(state);
  if (op.kind == Kind::kCreate) {
    if (op.result == Result::kExists) return state.exists ? std::optional(state) : std::nullopt;
    if (state.exists) return std::nullopt;
    return State{.exists = true};
  }
  if (!state.exists) return std::nullopt;
  switch (op.kind) {
    case Kind::kTurn:
      if (op.result == Result::kMoved) {
        return op.expected != state.position && told(state) ? std::optional(state) : std::nullopt;
      }
      if (op.expected != state.position) return std::nullopt;
      state.turns.push_back(state.position);
      if (state.turns.size() > kRememberedTurns) state.turns.erase(state.turns.begin());
      state.position += op.ids;
      break;
    case Kind::kRollback:
      if (op.result == Result::kNoTurn) return state.turns.empty() ? std::optional(state) : std::nullopt;
      if (state.turns.empty()) return std::nullopt;
      state.position = state.turns.back();
      state.turns.pop_back();
      break;
    case Kind::kDelete:
      return State();
    default:
      break;
  }
  return told(state) ? std::optional(state) : std::nullopt;
}

// Calls that change nothing are put into the order as soon as they fit: that never takes a possibility away.
class Search {
 public:
  explicit Search(std::vector<Operation> history) {
    std::sort(history.begin(), history.end(), [](const Operation& a, const Operation& b) { return a.begin < b.begin; });
    for (Operation& op : history) {
      const bool unknown = op.result == Operation::Result::kUnknown;
      if (unknown) op.end = std::numeric_limits<int64_t>::max();
      (unknown ? unknown_ : known_).push_back({std::move(op), false});
    }
  }

  std::string Run() {
    if (From(State(), 0)) return "";
    if (tried_.size() >= kMostStates) return absl::StrCat("undecided after ", kMostStates, " states");
    std::string out = "no order explains these calls. The longest that explains a part ends with:\n";
    for (size_t i = longest_.size() - std::min<size_t>(longest_.size(), 15); i < longest_.size(); ++i) {
      absl::StrAppend(&out, "  ", longest_[i]->ToString(), "\n");
    }
    absl::StrAppend(&out, "then the session is ", longest_state_.Key(), " and none of these can follow:\n");
    size_t shown = 0;
    for (const auto* calls : {&unknown_, &known_}) {
      for (const Call& call : *calls) {
        if (std::find(longest_.begin(), longest_.end(), &call.op) != longest_.end() || ++shown > 30) continue;
        absl::StrAppend(&out, "  ", call.op.ToString(), "\n");
      }
    }
    return out;
  }

 private:
  static constexpr size_t kMostStates = 2'000'000;
  struct Call {
    Operation op;
    bool done;
  };

  // `first`: all known calls before it are in the order.
  bool From(const State& state, size_t first) {
    while (first < known_.size() && known_[first].done) ++first;
    if (first == known_.size()) return true;
    // What ended before another began comes before it.
    int64_t first_end = std::numeric_limits<int64_t>::max();
    size_t last = first;
    for (; last < known_.size() && known_[last].op.begin <= first_end; ++last) {
      if (!known_[last].done) first_end = std::min(first_end, known_[last].op.end);
    }
    std::vector<std::pair<Call*, State>> next;
    for (size_t i = first; i < last; ++i) {
      if (known_[i].done || known_[i].op.begin > first_end) continue;
      std::optional<State> after = Apply(state, known_[i].op);
      if (!after) continue;
      if (after->Key() == state.Key()) return Take(&known_[i], *after, first);
      next.emplace_back(&known_[i], *std::move(after));
    }
    std::string key = absl::StrCat(state.Key(), "/", first, "/");
    for (size_t i = first; i < last; ++i) key += known_[i].done ? '1' : '0';
    for (Call& call : unknown_) {
      if (call.op.begin > first_end) break;
      key += call.done ? '1' : '0';
      std::optional<State> after = call.done ? std::nullopt : Apply(state, call.op);
      if (after && after->Key() != state.Key()) next.emplace_back(&call, *std::move(after));
    }
    if (tried_.size() >= kMostStates || !tried_.insert(key).second) return false;
    for (auto& [call, after] : next) {
      if (Take(call, after, first)) return true;
    }
    return false;
  }

  bool Take(Call* call, const State& after, size_t first) {
    call->done = true;
    order_.push_back(&call->op);
    if (order_.size() > longest_.size()) {
      longest_ = order_;
      longest_state_ = after;
    }
    const bool found = From(after, first);
    order_.pop_back();
    call->done = false;
    return found;
  }

  std::vector<Call> known_, unknown_;  // by begin
  std::vector<const Operation*> order_, longest_;
  State longest_state_;
  std::unordered_set<std::string> tried_;
};

}  // namespace

std::string Operation::ToString() const {
  constexpr const char* kKinds[] = {"create", "turn", "rollback", "delete", "get"};
  constexpr const char* kResults[] = {"ok", "unknown", "not found", "exists", "moved", "no turn"};
  std::string out = absl::StrCat("[", begin, ", ", result == Result::kUnknown ? "…" : absl::StrCat(end), "] client ",
                                 client, ": ", kKinds[static_cast<int>(kind)]);
  if (kind == Kind::kTurn) absl::StrAppend(&out, " of ", ids, " at ", expected);
  return absl::StrCat(out, " → ", kResults[static_cast<int>(result)], " ", position);
}

std::string ExplainNonlinearizable(std::vector<Operation> history) { return Search(std::move(history)).Run(); }

}  // namespace smt::testing
