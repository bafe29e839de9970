#include "model/stride_hybrid_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>

#include "model/base/status_macros.h"
#include "model/torch_slot_runner.h"

namespace smt {

StrideHybridModelImpl::StrideHybridModelImpl(const StrideHybridConfig& config) : config_(config) {
  transformer = register_module("transformer", NewWindowedTransformer(config));
  ssm = register_module("ssm", NewSSMMemory(config));
  pooling = register_module("pooling", AttentionPooling(config.d_model));
  if (!config.tie_word_embeddings) {
    lm_head = register_module("lm_head", Linear(config.d_model, config.vocab_size, /*with_bias=*/false));
  }
}

HybridState StrideHybridModelImpl::InitialState(int64_t batch) {
  const at::TensorOptions options = transformer->wte->weight.options().requires_grad(false);
  return {0, at::zeros({batch, 0}, options.dtype(at::kLong)), at::zeros({batch, 0, config_.d_model}, options),
          ssm->InitialState(batch, options)};
}

WriteResult StrideHybridModelImpl::Write(const WindowBatch& window, const SsmState& state) {
  const at::Tensor tokens = Embed(window.ids);
  const int64_t n = config_.n_ssm_outputs;
  WriteResult result;
  if (config_.pool_scope == PoolScope::kTokens) {
    result.pooled = pooling(tokens, window.mask.narrow(1, n, tokens.size(1)));
    result.pooled.weights = at::cat({at::zeros({tokens.size(0), n}, tokens.options()), result.pooled.weights}, 1);
  } else {
    result.pooled = pooling(at::cat({window.memory, tokens}, 1), window.mask);
  }
  result.memory = ssm->Step(result.pooled.vector, state);
  return result;
}

at::Tensor StrideHybridModelImpl::WindowEmbeddings(const WindowBatch& window) {
  return at::cat({window.memory, Embed(window.ids)}, 1).to(window_dtype_);
}

at::Tensor StrideHybridModelImpl::Window(const WindowBatch& window) {
  const at::Tensor rows = WindowEmbeddings(window);
  return transformer->forward(rows, at::arange(rows.size(1), window.ids.options()), window.mask);
}

at::Tensor StrideHybridModelImpl::Head(const at::Tensor& hidden) {
  const at::Tensor& weight = lm_head.is_empty() ? transformer->wte->weight : lm_head->weight;
  return at::linear(hidden.to(weight.scalar_type()), weight);
}

void StrideHybridModelImpl::Ingest(WindowManager& session, std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    session.Append(id);
    if (WritesAt(config_, session.position())) session.Push(Write(session.WriteWindow(), session.Ssm()).memory);
  }
}

at::Tensor StrideHybridModelImpl::Step(WindowManager& session, int32_t id) {
  const std::array<int32_t, 1> slot = {0}, ids = {id};
  return Step(session.slots(), slot, ids).select(0, 0);
}

at::Tensor StrideHybridModelImpl::Step(BatchedWindowManager& sessions, std::span<const int32_t> slots,
                                       std::span<const int32_t> ids) {
  std::vector<int32_t> writing;
  std::vector<TokenRange> pooled, seen;
  int64_t pooled_width = 1, seen_width = 1;
  for (size_t i = 0; i < slots.size(); ++i) {
    sessions.Append(slots[i], ids[i]);
    const int64_t t = sessions.position(slots[i]);
    seen.push_back(LogitsTokens(config_, config_.window_policy, t));
    seen_width = std::max(seen_width, seen.back().count);
    if (!WritesAt(config_, t)) continue;
    writing.push_back(slots[i]);
    pooled.push_back(LastTokens(config_, t));
    pooled_width = std::max(pooled_width, pooled.back().count);
  }
  if (!writing.empty()) {
    sessions.Push(writing, Write(sessions.Gather(writing, pooled, pooled_width), sessions.GatherSsm(writing)).memory);
  }
  const WindowBatch window = sessions.Gather(slots, seen, seen_width);
  const at::Tensor hidden = Window(window);  // [B, rows, D]
  const int64_t batch = hidden.size(0), rows = hidden.size(1);
  const at::Tensor last = at::arange(batch, window.last.options()) * rows + window.last;
  return Head(at::index_select(hidden.reshape({batch * rows, config_.d_model}), 0, last));
}

absl::StatusOr<std::vector<int32_t>> StrideHybridModelImpl::Generate(std::span<const int32_t> prompt,
                                                                     const GenerateOptions& options) {
  StrideHybridModel self(std::dynamic_pointer_cast<StrideHybridModelImpl>(shared_from_this()));
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotRunner> runner, NewTorchSlotRunner(self, {.slots = 1}));
  return smt::Generate(*runner, 0, prompt, options);
}

void StrideHybridModelImpl::StoreInWindowDtype() {
  at::NoGradGuard no_grad;
  for (auto& item : transformer->named_parameters()) {
    if (item.key() != "wte.weight") item.value().set_data(item.value().to(window_dtype_));
  }
}

}  // namespace smt
