// What AdjustLogits does to the rows of a batch, as values that a device applies by itself (model/cuda/logits.h): the
// ids of each row that change, each with all that happens to it. The device may run ahead of the host by one id a
// request.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/sampling/logit_edit.h"
#include "model/sampling/penalty_state.h"
#include "model/sampling/sampling_params.h"

namespace smt {

// The edits of one batch. No allocation after the largest. Not thread-safe.
class EditPlan {
 public:
  explicit EditPlan(int32_t vocab_size);

  void Clear();  // begins a batch

  // Adds the edits of `row`, whose request has drawn what `penalties`, bound to `params`, counts and, where `drawn` >=
  // 0, one id more that the device alone knows: it lies at that index of the array that the device is given. False: the
  // row needs none, and rows() is as it was. Costs O(biases + entries + masked ids).
  bool Add(int32_t row, const SamplingParams& params, const PenaltyState& penalties, int32_t drawn = -1);

  std::span<const RowEdits> rows() const { return rows_; }  // in order of Add
  std::span<const LogitEdit> edits() const { return edits_; }

 private:
  LogitEdit* Find(int32_t id);  // null: outside of the vocabulary

  std::vector<RowEdits> rows_;
  std::vector<LogitEdit> edits_;
  std::vector<int32_t> index_;  // [vocab_size]: id -> edits_ of the row that is being added; else -1
};

// Applies a row's edits as the device does, for tests; `edits` are the plan's, `drawn` is the id that the host does not
// know where row.drawn >= 0.
void ApplyEdits(const RowEdits& row, std::span<const LogitEdit> edits, int32_t drawn, std::span<float> logits);

}  // namespace smt
