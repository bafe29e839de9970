#include "model/ssm_memory.h"

#include <ATen/ops/cat.h>

#include <algorithm>

#include "model/mamba.h"
#include "model/simple_ssm.h"

namespace smt {
namespace {

constexpr int64_t kScanChunk = 64;  // bounds memory: a pass holds a few [B, 64, d_inner, d_state]

}  // namespace

at::Tensor LinearRecurrence(const at::Tensor& decay, const at::Tensor& increment, const at::Tensor& initial) {
  const int64_t steps = decay.size(1);
  std::vector<at::Tensor> chunks;
  at::Tensor carried = initial;
  for (int64_t start = 0; start < steps; start += kScanChunk) {
    const int64_t length = std::min(kScanChunk, steps - start);
    // (a, b) at t stands for h -> a h + b over the last `span` steps; composing neighbours doubles the span.
    at::Tensor a = decay.narrow(1, start, length), b = increment.narrow(1, start, length);
    for (int64_t span = 1; span < length; span *= 2) {
      const at::Tensor a_late = a.narrow(1, span, length - span), b_late = b.narrow(1, span, length - span);
      const at::Tensor a_early = a.narrow(1, 0, length - span), b_early = b.narrow(1, 0, length - span);
      const at::Tensor b_joined = a_late * b_early + b_late;
      b = at::cat({b.narrow(1, 0, span), b_joined}, 1);
      a = at::cat({a.narrow(1, 0, span), a_late * a_early}, 1);
    }
    chunks.push_back(a * carried.unsqueeze(1) + b);
    carried = chunks.back().select(1, length - 1);
  }
  return at::cat(chunks, 1);
}

std::shared_ptr<SSMMemoryImpl> NewSSMMemory(const StrideHybridConfig& config) {
  if (config.ssm.kind == SsmKind::kSimple) return std::make_shared<SimpleSSMImpl>(config);
  return std::make_shared<MambaImpl>(config);
}

}  // namespace smt
