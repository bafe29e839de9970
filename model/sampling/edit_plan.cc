#include "model/sampling/edit_plan.h"

#include "model/sampling/adjust_logits.h"

namespace smt {

EditPlan::EditPlan(int32_t vocab_size) : index_(static_cast<size_t>(vocab_size), -1) {}

void EditPlan::Clear() {
  rows_.clear();
  edits_.clear();
}

LogitEdit* EditPlan::Find(int32_t id) {
  if (id < 0 || static_cast<size_t>(id) >= index_.size()) return nullptr;
  int32_t& at = index_[static_cast<size_t>(id)];
  if (at < 0) {
    at = static_cast<int32_t>(edits_.size());
    edits_.push_back({.id = id});
  }
  return &edits_[static_cast<size_t>(at)];
}

bool EditPlan::Add(int32_t row, const SamplingParams& params, const PenaltyState& penalties, int32_t drawn) {
  RowEdits added = {.row = row, .first = static_cast<int32_t>(edits_.size()), .penalties = PenaltiesOf(params)};
  const bool unknown = drawn >= 0 && added.penalties.any();
  for (const auto& [id, bias] : params.logit_bias) {
    LogitEdit* edit = Find(id);
    if (edit == nullptr) continue;
    edit->bias = bias;
    edit->biased = 1;
  }
  for (const PenaltyState::Entry& entry : penalties.entries()) {
    // A repetition penalty of 1 changes no bit; what the last id, if unknown, adds to this one it adds without an edit
    // too.
    if (entry.generated == 0 && added.penalties.repetition == 1.0f) continue;
    LogitEdit* edit = Find(entry.id);
    if (edit == nullptr) continue;
    edit->generated = static_cast<uint32_t>(entry.generated);
    edit->seen = 1;
  }
  if (penalties.generated_total() + (drawn >= 0 ? 1 : 0) < params.min_tokens) {
    for (int32_t id : params.masked_until_min_tokens) {
      if (LogitEdit* edit = Find(id)) edit->masked = 1;
    }
  }
  for (size_t i = static_cast<size_t>(added.first); i < edits_.size(); ++i) {
    index_[static_cast<size_t>(edits_[i].id)] = -1;
  }
  if (unknown) {
    added.drawn = drawn;
    edits_.push_back({.id = -1});
  }
  added.count = static_cast<int32_t>(edits_.size()) - added.first;
  if (added.count == 0) return false;
  rows_.push_back(added);
  return true;
}

void ApplyEdits(const RowEdits& row, std::span<const LogitEdit> edits, int32_t drawn, std::span<float> logits) {
  edits = edits.subspan(static_cast<size_t>(row.first), static_cast<size_t>(row.count));
  bool found = false;
  for (const LogitEdit& edit : edits) {
    if (edit.id < 0) continue;
    const bool more = row.drawn >= 0 && edit.id == drawn;
    found |= more;
    float& logit = logits[static_cast<size_t>(edit.id)];
    logit = EditedLogit(logit, edit, more, row.penalties);
  }
  if (row.drawn < 0 || found || drawn < 0 || static_cast<size_t>(drawn) >= logits.size()) return;
  float& logit = logits[static_cast<size_t>(drawn)];
  logit = EditedLogit(logit, edits.back(), 1, row.penalties);
}

}  // namespace smt
