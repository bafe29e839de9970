#include "server/session/lineage.h"

#include <algorithm>

#include "model/base/status_macros.h"

namespace smt {

Lineage CutLineage(const BranchView& view, std::span<const SnapshotName> own, int64_t position,
                   std::span<const int64_t> also) {
  Lineage out;
  for (const LogPiece& piece : view.before.log) {
    if (out.end() >= position) break;
    out.log.push_back(piece);
    out.log.back().last = std::min(piece.last, position);
  }
  if (out.end() < position) out.log.push_back({view.key, view.branch, position});

  std::vector<StateName> states = view.before.states;
  for (const SnapshotName& name : own) {
    if (name.branch == view.branch) states.push_back({view.key, name.branch, name.position});
  }
  std::stable_sort(states.begin(), states.end(),
                   [](const StateName& a, const StateName& b) { return a.position < b.position; });
  std::vector<bool> wanted(states.size());
  const auto want = [&](int64_t up_to) {
    size_t n = states.size();
    while (n > 0 && states[n - 1].position > up_to) --n;
    if (n > 0) wanted[n - 1] = true;
  };
  want(position);
  for (const int64_t p : also) want(std::min(p, position));
  for (size_t i = 0; i < states.size(); ++i) {
    if (wanted[i]) out.states.push_back(std::move(states[i]));
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> ReadBranch(SessionStore& store, const BranchView& view, int64_t first,
                                                int64_t last) {
  std::vector<int32_t> out;
  const auto read = [&](const SessionKey& owner, int64_t branch, int64_t from, int64_t to) -> absl::Status {
    if (from > to) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, store.ReadLog(owner, branch, from, to));
    if (out.empty()) {
      out = std::move(ids);
    } else {
      out.insert(out.end(), ids.begin(), ids.end());
    }
    return absl::OkStatus();
  };
  int64_t begin = 0;
  for (const LogPiece& piece : view.before.log) {
    RETURN_IF_ERROR(read(piece.owner, piece.branch, std::max(first, begin + 1), std::min(last, piece.last)));
    begin = piece.last;
  }
  RETURN_IF_ERROR(read(view.key, view.branch, std::max(first, begin + 1), last));
  return out;
}

absl::StatusOr<std::vector<int32_t>> TakeShortPiece(SessionStore& store, Lineage* lineage) {
  std::vector<int32_t> out;
  if (lineage->log.empty()) return out;
  const LogPiece last = lineage->log.back();
  const int64_t begin = lineage->log.size() > 1 ? lineage->log[lineage->log.size() - 2].last : 0;
  if (last.last - begin >= kMinSharedIds) return out;
  ASSIGN_OR_RETURN(out, store.ReadLog(last.owner, last.branch, begin + 1, last.last));
  lineage->log.pop_back();
  return out;
}

void AddReferences(uint64_t uid, const Lineage& lineage, std::vector<StoreReference>* out) {
  const auto add = [&](StoreReference reference) {
    if (reference.owner.uid == uid) return;
    if (std::find(out->begin(), out->end(), reference) == out->end()) out->push_back(std::move(reference));
  };
  for (const LogPiece& piece : lineage.log) {
    add({StoreReference::Kind::kLog, piece.owner, piece.branch, piece.last});
  }
  for (const StateName& state : lineage.states) {
    add({StoreReference::Kind::kSnapshot, state.owner, state.branch, state.position});
  }
}

}  // namespace smt
