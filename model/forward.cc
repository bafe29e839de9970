// StrideHybridModel::Forward: every window of a text in parallel.
//
// Two passes. The memory stream first: which vectors memory holds after each write. With pool_scope = window it feeds
// on itself, so writes follow one another; with tokens all pools are independent and the SSM is one parallel scan. Then
// every window is known in advance, whatever the policy, and windows are gathered by index and computed in a batch:
// slide has one window a position, hop one a stride segment, whose rows are causal and so give all its logits.
//
// Positions are 1-based. `embeddings` holds the initial state's tokens, then the new ones: the token at position t is
// its row t - base - 1.
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "model/stride_hybrid_model.h"

namespace smt {
namespace {

constexpr int64_t kWritesAtOnce = 256;  // pooled together when writes are independent

at::Tensor Indices(const std::vector<int64_t>& values, const at::Device& device) {
  const at::Tensor host = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), host.data_ptr<int64_t>());
  return host.to(device);
}

// rows: [B, R, D]; takes `count` groups of `width` rows: [B, count, width, D].
at::Tensor TakeRows(const at::Tensor& rows, const std::vector<int64_t>& index, int64_t count, int64_t width) {
  return at::index_select(rows, 1, Indices(index, rows.device())).view({rows.size(0), count, width, rows.size(2)});
}

at::Tensor BoolMask(const std::vector<int64_t>& mask, int64_t width, const at::Device& device) {
  return Indices(mask, device).view({-1, width}).to(at::kBool);
}

}  // namespace

struct StrideHybridModelImpl::Stream {
  at::Tensor vectors;       // [B, carried + K, D]: the initial memory, then each write's output
  int64_t carried = 0;      // rows that were there before
  int64_t first_write = 0;  // writes made before this Forward
  at::Tensor pool_weights;  // [B, K, W]
  SsmState ssm;             // after the last write
};

StrideHybridModelImpl::Stream StrideHybridModelImpl::Remember(const at::Tensor& embeddings, int64_t base,
                                                              int64_t length, const HybridState& initial) {
  const int64_t s = config_.stride, m = config_.m_input_tokens, n = config_.n_ssm_outputs, width = config_.window();
  const int64_t batch = embeddings.size(0), d = embeddings.size(2);
  Stream stream;
  stream.carried = initial.memory.size(1);
  stream.first_write = initial.position / s;
  stream.ssm = initial.ssm;
  const int64_t writes = (initial.position + length) / s - stream.first_write;
  std::vector<at::Tensor> vectors = {initial.memory}, weights = {at::zeros({batch, 0, width}, embeddings.options())};

  if (config_.pool_scope == PoolScope::kTokens) {
    for (int64_t start = 0; start < writes; start += kWritesAtOnce) {
      const int64_t count = std::min(kWritesAtOnce, writes - start);
      std::vector<int64_t> index(count * m, 0), mask(count * m, 0);
      for (int64_t w = 0; w < count; ++w) {
        const TokenRange seen = LastTokens(config_, (stream.first_write + start + w + 1) * s);
        for (int64_t j = 0; j < seen.count; ++j) {
          index[w * m + j] = seen.first + j - base - 1;
          mask[w * m + j] = 1;
        }
      }
      const at::Tensor rows = TakeRows(embeddings, index, count, m).view({batch * count, m, d});
      const at::Tensor seen = BoolMask(mask, m, embeddings.device()).unsqueeze(0).expand({batch, count, m});
      const Pooled pooled = pooling(rows, seen.reshape({batch * count, m}));
      const SsmResult result = ssm->Scan(pooled.vector.view({batch, count, d}), stream.ssm);
      stream.ssm = result.state;
      vectors.push_back(result.output);
      weights.push_back(at::constant_pad_nd(pooled.weights.view({batch, count, m}), {0, width - m}));
    }
  } else {
    std::vector<at::Tensor> memory;  // the last n at most, each [B, 1, D]
    for (int64_t i = 0; i < stream.carried; ++i) memory.push_back(initial.memory.narrow(1, i, 1));
    for (int64_t w = 0; w < writes; ++w) {
      const TokenRange seen = LastTokens(config_, (stream.first_write + w + 1) * s);
      std::vector<at::Tensor> window = memory;
      window.push_back(embeddings.narrow(1, seen.first - base - 1, seen.count));
      const Pooled pooled = pooling(at::cat(window, 1));
      const SsmResult result = ssm->Step(pooled.vector, stream.ssm);
      stream.ssm = result.state;
      memory.push_back(result.output.unsqueeze(1));
      vectors.push_back(memory.back());
      if (static_cast<int64_t>(memory.size()) > n) memory.erase(memory.begin());
      weights.push_back(at::constant_pad_nd(pooled.weights, {0, width - pooled.weights.size(1)}).unsqueeze(1));
    }
  }
  stream.vectors = at::cat(vectors, 1);
  stream.pool_weights = at::cat(weights, 1);
  return stream;
}

at::Tensor StrideHybridModelImpl::WindowLogits(const at::Tensor& embeddings, int64_t base, const Stream& stream,
                                               int64_t first, int64_t last, WindowPolicy policy, int64_t rows_at_once) {
  const int64_t n = config_.n_ssm_outputs, s = config_.stride, batch = embeddings.size(0), d = embeddings.size(2);
  const at::Device device = embeddings.device();
  // Memory rows that are not there take a row of zeros, appended last.
  const at::Tensor memory = at::constant_pad_nd(stream.vectors, {0, 0, 0, 1});
  const int64_t absent = memory.size(1) - 1;
  const int64_t windows_at_once = std::max<int64_t>(1, rows_at_once / (batch * config_.window()));

  std::vector<at::Tensor> logits;
  int64_t t = first;
  while (t <= last) {
    // The windows of this chunk, each by the last position it gives logits for; it starts at the next one's t.
    std::vector<int64_t> starts, ends;
    int64_t width = 0;
    for (; t <= last && static_cast<int64_t>(ends.size()) < windows_at_once; t = ends.back() + 1) {
      starts.push_back(t);
      ends.push_back(policy == WindowPolicy::kSlide ? t : std::min(last, LastWriteAt(config_, t) + s - 1));
      width = std::max(width, LogitsTokens(config_, policy, ends.back()).count);
    }
    const int64_t count = ends.size(), rows = n + width;
    std::vector<int64_t> memory_index(count * n, absent), token_index(count * width, 0), mask(count * rows, 0), taken;
    for (int64_t g = 0; g < count; ++g) {
      const int64_t written = ends[g] / s, valid = std::min(n, written);
      const int64_t newest = stream.carried + written - stream.first_write;  // one past, in stream.vectors
      for (int64_t i = 0; i < valid; ++i) memory_index[g * n + i] = newest - valid + i, mask[g * rows + i] = 1;
      const TokenRange seen = LogitsTokens(config_, policy, ends[g]);
      for (int64_t j = 0; j < seen.count; ++j) {
        token_index[g * width + j] = seen.first + j - base - 1;
        mask[g * rows + n + j] = 1;
      }
      for (int64_t at = starts[g]; at <= ends[g]; ++at) taken.push_back(g * rows + n + (at - seen.first));
    }
    const at::Tensor window =
        at::cat({TakeRows(memory, memory_index, count, n), TakeRows(embeddings, token_index, count, width)}, 2)
            .view({batch * count, rows, d})
            .to(window_dtype_);
    const at::Tensor valid = BoolMask(mask, rows, device).unsqueeze(0).expand({batch, count, rows});
    const at::Tensor positions = at::arange(rows, at::TensorOptions().dtype(at::kLong).device(device));
    const at::Tensor hidden = transformer->forward(window, positions, valid.reshape({batch * count, rows}));
    logits.push_back(Head(at::index_select(hidden.reshape({batch, count * rows, d}), 1, Indices(taken, device))));
  }
  return logits.size() == 1 ? logits[0] : at::cat(logits, 1);
}

ForwardResult StrideHybridModelImpl::Forward(const at::Tensor& ids, const HybridState* initial,
                                             const ForwardOptions& options) {
  const int64_t batch = ids.size(0), length = ids.size(1);
  const HybridState state = initial != nullptr ? *initial : InitialState(batch);
  const at::Tensor history = at::cat({state.tokens.to(ids.device()), ids}, 1);  // [B, h + L]
  const int64_t base = state.position - state.tokens.size(1);
  const at::Tensor embeddings = Embed(history);
  const Stream stream = Remember(embeddings, base, length, state);

  ForwardResult result;
  const int64_t end = state.position + length;
  if (options.logits) {
    result.logits = length > 0 ? WindowLogits(embeddings, base, stream, state.position + 1, end,
                                              options.policy.value_or(config_.window_policy), options.rows_at_once)
                               : at::zeros({batch, 0, config_.vocab_size}, embeddings.options());
  }
  const int64_t kept = LastTokens(config_, end).count, vectors = stream.vectors.size(1);
  const int64_t valid = std::min(config_.n_ssm_outputs, end / config_.stride);
  result.aux.ssm_outputs = stream.vectors.narrow(1, stream.carried, vectors - stream.carried);
  result.aux.pool_weights = stream.pool_weights;
  result.aux.final_state = {end, history.narrow(1, history.size(1) - kept, kept),
                            stream.vectors.narrow(1, vectors - valid, valid), stream.ssm};
  return result;
}

}  // namespace smt
