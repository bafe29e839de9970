// What bias, penalties and the min_tokens mask make of a logit, and the edits of a batch as a device takes them. The
// operations are float32, each rounded on its own but the frequency penalty, which is one fused multiply-add; host and
// device agree bit for bit. Usable from CUDA; compile without fast-math.
#pragma once

#include <math.h>
#include <stdint.h>

#include "model/sampling/exp_weight.h"

namespace smt {

struct Penalties {
  float repetition = 1.0f, presence = 0.0f, frequency = 0.0f;  // as in SamplingParams

  SMT_HOST_DEVICE bool any() const { return repetition != 1.0f || presence != 0.0f || frequency != 0.0f; }
};

// One id of a row. 12 bytes, the same on host and device.
struct LogitEdit {
  int32_t id;               // in [0, vocabulary); RowEdits says what -1 stands for
  float bias;               // if `biased`
  uint32_t generated : 29;  // times the request drew the id
  uint32_t biased : 1;
  uint32_t seen : 1;    // drawn, or among the last m ids before the request: the repetition penalty applies
  uint32_t masked : 1;  // by min_tokens
};
static_assert(sizeof(LogitEdit) == 12);

// A row's edits: edits[first], ..., edits[first + count - 1], each id once.
struct RowEdits {
  int32_t row = -1;  // of the logits; -1: none, skipped
  int32_t first = 0, count = 0;
  // >= 0: where in a device array the id lies that the request drew last and the host does not know yet. The row's last
  // edit then has the id -1 and nothing set: it stands for that id. If the id has an edit of its own, that one counts
  // one more occurrence instead; if it is outside of the vocabulary, nothing happens.
  int32_t drawn = -1;
  Penalties penalties;
};

// The product, rounded: compilers fuse a product with the sum that takes it where they may.
SMT_HOST_DEVICE inline float RoundedProduct(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return fmaf(a, b, -0.0f);
#endif
}

// A logit after the penalties, in their order. `generated`: how often the request drew the id; `seen`: it did, or the
// id is among the last m before the request.
SMT_HOST_DEVICE inline float PenalizedLogit(float logit, int32_t generated, bool seen, const Penalties& penalties) {
  if (seen) {
    logit = logit > 0.0f ? logit / penalties.repetition : RoundedProduct(logit, penalties.repetition);
  }
  if (generated > 0) {
    logit = logit - penalties.presence;
    logit = fmaf(-penalties.frequency, static_cast<float>(generated), logit);
  }
  return logit;
}

// A logit after an edit: bias, penalties, mask. `more`: occurrences that `edit` does not count.
SMT_HOST_DEVICE inline float EditedLogit(float logit, const LogitEdit& edit, int32_t more, const Penalties& penalties) {
  if (edit.masked) return -INFINITY;
  if (edit.biased) logit = logit + edit.bias;
  return PenalizedLogit(logit, static_cast<int32_t>(edit.generated) + more, edit.seen || more > 0, penalties);
}

}  // namespace smt
