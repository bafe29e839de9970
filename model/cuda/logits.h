// Launchers of the kernels around a draw: log-probabilities of rows of logits, and edits of their logits. Both give the
// bits of the host's sampler (docs/sampling.md). All pointers are into device memory; everything is queued on `stream`,
// nothing waits or allocates, and all can be captured. A launch error is thrown as std::runtime_error (CheckCuda).
//
// A step of a batch that asks for everything queues, in this order,
//
//   ReadLogprobs       before any edit: log-probabilities are the model's own
//   EditLogits         in place; keeps what the edited logits were
//   DrawIds            (model/cuda/kernels.h) with the temperature, top_k, top_p and min_p alone
//   GatherLogprobs     of the ids drawn
//
// and leaves out what no row needs. A row's bits depend on that row's inputs alone. Rows of -1 are skipped, so that a
// captured launch serves fewer rows than it was captured for.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/sampling/logit_edit.h"
#include "model/sampling/row_logprobs.h"

namespace smt::cuda {

// out[i], but its logprob, of row asks[i].row of logits [rows, ld], columns [0, vocab). A row may be asked for once or
// more. vocab <= kMaxTerms (model/sampling/log_softmax.h).
void ReadLogprobs(const float* logits, int64_t ld, const LogprobAsk* asks, int count, int vocab, RowLogprobs* out,
                  cudaStream_t stream);

// What a logit was before its edit.
struct EditedFrom {
  int32_t id;  // -1: the edit changed nothing
  float logit;
};
// Applies the edits of rows[0, count) to their rows of logits [rows, ld], in place; each row of logits has one RowEdits
// at most. edits: EditPlan's (model/sampling/edit_plan.h). drawn: ids that earlier steps drew, at RowEdits::drawn; null
// if all of those are -1. from: [edits], written one for each edit; null: not kept, for batches without LogprobAsk.
void EditLogits(float* logits, int64_t ld, const RowEdits* rows, int count, const LogitEdit* edits,
                const int32_t* drawn, int vocab, EditedFrom* from, cudaStream_t stream);

// out[i].logprob of the id that was drawn from row asks[i].row, ids[asks[i].row], by the max and log_sum that
// ReadLogprobs left there; -infinity where the id is -1. rows and from: EditLogits'; both null if no row was edited.
// `drawn` of EditLogits may be `ids`.
void GatherLogprobs(const float* logits, int64_t ld, const LogprobAsk* asks, int count, const RowEdits* rows,
                    const EditedFrom* from, const int32_t* ids, RowLogprobs* out, cudaStream_t stream);

}  // namespace smt::cuda
