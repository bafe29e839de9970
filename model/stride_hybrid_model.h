// StrideHybridModel: the whole Stride Memory Transformer. A transformer sees a window [n memory vectors | recent
// tokens]; every s tokens the window is pooled into one vector, an SSM absorbs it, and its output joins the memory
// side.
//
// Symbols: B batch, L tokens, V vocabulary, D width, n memory slots, m token slots, s stride, W = n + m. The memory
// path (pooling, SSM) computes in float32, or float64 after to(kDouble); the window in window_dtype(). Every function
// is differentiable where grad mode is on. const methods do not exist in torch::nn, but nothing here changes the model:
// threads may share one under InferenceMode.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/attention_pooling.h"
#include "model/config.h"
#include "model/generate.h"
#include "model/hybrid_state.h"
#include "model/parameter_statistics.h"
#include "model/ssm_memory.h"
#include "model/window_manager.h"
#include "model/windowed_transformer.h"

namespace smt {

struct ForwardOptions {
  std::optional<WindowPolicy> policy = std::nullopt;  // over the config's
  bool logits = true;                                 // false: memory only, the transformer is never run
  int64_t rows_at_once = 8192;  // window rows computed together, which bounds memory when no graph is recorded
};

struct ForwardAux {
  at::Tensor ssm_outputs;   // [B, K, D], what each of the K writes pushed
  at::Tensor pool_weights;  // [B, K, W], of the rows pooled: valid memory oldest first, then tokens, then zeros
  HybridState final_state;  // after all of ids; part of the autograd graph (Detach cuts it)
};

struct ForwardResult {
  at::Tensor logits;  // [B, L, V] float32, after each token; undefined if not asked for
  ForwardAux aux;
};

// One write of B sessions.
struct WriteResult {
  Pooled pooled;  // weights [B, n + width] as the window's rows lie (memory scope tokens: 0 on memory)
  SsmResult memory;
};

class StrideHybridModelImpl : public torch::nn::Module {
 public:
  // Random weights. `config` must be valid.
  explicit StrideHybridModelImpl(const StrideHybridConfig& config);

  // ids: int64 [B, L]. initial: as another Forward gave it, B rows, or nothing: t = 0.
  ForwardResult Forward(const at::Tensor& ids, const HybridState* initial = nullptr,
                        const ForwardOptions& options = {});
  HybridState InitialState(int64_t batch);  // t = 0

  // Appends ids, writing at stride boundaries; no logits.
  void Ingest(WindowManager& session, std::span<const int32_t> ids);
  // Appends one id and gives the logits after it, [V] float32. The literal architecture: every window is recomputed.
  at::Tensor Step(WindowManager& session, int32_t id);
  // The same for slots at any phases: ids[i] goes to slots[i], each at most once. [slots, V].
  at::Tensor Step(BatchedWindowManager& sessions, std::span<const int32_t> slots, std::span<const int32_t> ids);

  // The offline loop of model/generate.h, on a session of its own that begins with `prompt`.
  absl::StatusOr<std::vector<int32_t>> Generate(std::span<const int32_t> prompt, const GenerateOptions& options);
  // Parameters by part of the model.
  ParameterStatistics Statistics() const { return CountParameters(config_); }

  // The parts of a step.
  at::Tensor Embed(const at::Tensor& ids) { return transformer->wte(ids); }  // [...] -> [..., D]
  WriteResult Write(const WindowBatch& window, const SsmState& state);       // pool and absorb; pure
  at::Tensor WindowEmbeddings(const WindowBatch& window);  // [B, n + width, D] in the window's dtype, no positions
  at::Tensor Window(const WindowBatch& window);            // hidden [B, n + width, D]
  at::Tensor Head(const at::Tensor& hidden);               // [..., D] -> logits [..., V]

  const StrideHybridConfig& config() const { return config_; }
  at::ScalarType window_dtype() const { return window_dtype_; }
  at::Device device() const { return transformer->wte->weight.device(); }
  // Computes windows in `dtype` (float32, float64 or bfloat16) from now on; parameters are cast as they are used.
  void set_window_dtype(at::ScalarType dtype) { window_dtype_ = dtype; }
  // Also stores the transformer's parameters (embeddings of tokens excepted) in the window's dtype: for inference.
  void StoreInWindowDtype();

  std::shared_ptr<WindowedTransformerImpl> transformer;
  std::shared_ptr<SSMMemoryImpl> ssm;
  AttentionPooling pooling{nullptr};
  Linear lm_head{nullptr};  // empty where tied to wte

 private:
  struct Stream;  // what the memory side holds over a Forward
  Stream Remember(const at::Tensor& embeddings, int64_t base, int64_t length, const HybridState& initial);
  at::Tensor WindowLogits(const at::Tensor& embeddings, int64_t base, const Stream& stream, int64_t first, int64_t last,
                          WindowPolicy policy, int64_t rows_at_once);

  const StrideHybridConfig config_;
  at::ScalarType window_dtype_ = at::kFloat;
};
TORCH_MODULE(StrideHybridModel);

struct LoadOptions {
  std::string device = "cpu";                                // "cpu", "cuda", "cuda:N"
  at::ScalarType dtype = at::kFloat;                         // of the window: float32 or bfloat16
  std::optional<WindowPolicy> window_policy = std::nullopt;  // over config.json's
  std::optional<PoolScope> pool_scope = std::nullopt;        // over config.json's
  bool trainable = false;  // own every weight and require gradients; else weights may be the mapped file
};

// Reads `model_dir`/config.json and model.safetensors. Errors name the file, the tensor, and what is allowed: NOT_FOUND
// (no such file), INVALID_ARGUMENT (config, shapes, device), DATA_LOSS (a damaged file), UNAVAILABLE (no such device).
absl::StatusOr<StrideHybridModel> LoadStrideHybridModel(const std::string& model_dir, const LoadOptions& options = {});

}  // namespace smt
