// Every tensor that a checkpoint holds: name, shape and what it is for. The one source of truth that the modules, the
// CPU kernels, the importer, the initialiser and the parameter statistics share.
//
// Linear weights are [out, in], y = W x + b; GPT-2's Conv1D weights (transformer.h.*.{attn,mlp}.c_*) are [in, out].
//
//   all           transformer.wte.weight [V, D], transformer.wpe.weight [n_positions, D], pooling.{query,key}.weight
//                 [D, D], lm_head.weight [V, D] where the head is not tied
//   gpt2          transformer.h.N.{ln_1, attn.{c_attn, c_proj}, ln_2, mlp.{c_fc, c_proj}}, transformer.ln_f
//   simple        transformer.h.N.{norm, attn.{query, key, value, out}, mlp.{up, down}}.weight,
//   transformer.norm_f.weight
//                 a = x + out(attention(norm(x))); x' = a + down(relu(up(norm(a)))): no biases, one RMSNorm used twice
//   mamba         ssm.backbone.layers.N.{norm, mixer.*}, ssm.backbone.norm_f (Mamba-1, names as on the hub)
//   simple SSM    ssm.layers.N.{in_proj.weight, out_proj.weight, decay, skip}
//                 h = sigmoid(decay) h + in_proj(x); x' = x + out_proj(h) + skip x
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace smt {

// The part of the model that a tensor belongs to.
enum class ModelPart { kTokenEmbedding, kPositionEmbedding, kTransformer, kHead, kPooling, kSsm };
std::string_view Name(ModelPart part);  // "token embedding" …

// What a tensor is, which decides how it is initialised and whether it is ever stored in 16 bits.
enum class TensorRole {
  kEmbedding,       // normal(0, 0.02), positions 0.01
  kMatrix,          // normal(0, 0.02); SSM matrices uniform(±1/sqrt(in))
  kResidualMatrix,  // writes into the residual stream: a matrix scaled by 1/sqrt(number of such writes)
  kPoolingMatrix,   // near the identity: see model/initializer.h
  kGain,            // norm weights: 1
  kBias,            // 0
  kConv,            // depthwise taps and their bias: uniform(±1/sqrt(d_conv))
  kTimeStepBias,    // Mamba dt_proj.bias: inverse softplus of a log-uniform time step in [1e-3, 1e-1]
  kTimeStepMatrix,  // Mamba dt_proj.weight: uniform(±dt_rank^-1/2)
  kDecay,           // Mamba A_log: log(1 … d_state) in each row; the simple SSM's decay logits
  kSkip,            // Mamba D: 1; the simple SSM's skip: 0
};
// Matrices may be stored in 16 bits; vectors and recurrence parameters stay float32 in files we write.
bool StoredInModelDtype(TensorRole role);

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  ModelPart part;
  TensorRole role;

  int64_t numel() const;
};

// In a fixed order: embeddings, transformer by layer, head, pooling, SSM by layer. `config` must be valid.
std::vector<TensorSpec> ExpectedTensors(const StrideHybridConfig& config);

// Buffers that published GPT-2 checkpoints carry and nothing needs: causal masks (h.N.attn.bias, h.N.attn.masked_bias)
//; also a stored copy of a tied head.
bool IsIgnorableTensor(std::string_view name, const StrideHybridConfig& config);

}  // namespace smt
