#include "model/tensor_names.h"

#include "absl/strings/match.h"
#include "model/base/strings.h"

namespace smt {
namespace {

using Specs = std::vector<TensorSpec>;
using enum TensorRole;

void AddGpt2(const StrideHybridConfig& c, Specs& specs) {
  const int64_t d = c.d_model, mlp = c.mlp_width();
  const auto add = [&](std::string name, std::vector<int64_t> shape, TensorRole role) {
    specs.push_back({std::move(name), std::move(shape), ModelPart::kTransformer, role});
  };
  for (int64_t i = 0; i < c.transformer.n_layer; ++i) {
    const std::string h = StrCat("transformer.h.", i, ".");
    add(h + "ln_1.weight", {d}, kGain);
    add(h + "ln_1.bias", {d}, kBias);
    add(h + "attn.c_attn.weight", {d, 3 * d}, kMatrix);
    add(h + "attn.c_attn.bias", {3 * d}, kBias);
    add(h + "attn.c_proj.weight", {d, d}, kResidualMatrix);
    add(h + "attn.c_proj.bias", {d}, kBias);
    add(h + "ln_2.weight", {d}, kGain);
    add(h + "ln_2.bias", {d}, kBias);
    add(h + "mlp.c_fc.weight", {d, mlp}, kMatrix);
    add(h + "mlp.c_fc.bias", {mlp}, kBias);
    add(h + "mlp.c_proj.weight", {mlp, d}, kResidualMatrix);
    add(h + "mlp.c_proj.bias", {d}, kBias);
  }
  add("transformer.ln_f.weight", {d}, kGain);
  add("transformer.ln_f.bias", {d}, kBias);
}

void AddSimpleTransformer(const StrideHybridConfig& c, Specs& specs) {
  const int64_t d = c.d_model, mlp = c.mlp_width();
  const auto add = [&](std::string name, std::vector<int64_t> shape, TensorRole role) {
    specs.push_back({std::move(name), std::move(shape), ModelPart::kTransformer, role});
  };
  for (int64_t i = 0; i < c.transformer.n_layer; ++i) {
    const std::string h = StrCat("transformer.h.", i, ".");
    add(h + "norm.weight", {d}, kGain);
    add(h + "attn.query.weight", {d, d}, kMatrix);
    add(h + "attn.key.weight", {d, d}, kMatrix);
    add(h + "attn.value.weight", {d, d}, kMatrix);
    add(h + "attn.out.weight", {d, d}, kResidualMatrix);
    add(h + "mlp.up.weight", {mlp, d}, kMatrix);
    add(h + "mlp.down.weight", {d, mlp}, kResidualMatrix);
  }
  add("transformer.norm_f.weight", {d}, kGain);
}

void AddMamba(const StrideHybridConfig& c, Specs& specs) {
  const int64_t d = c.d_model, inner = c.d_inner(), state = c.ssm.d_state, rank = c.dt_rank();
  const auto add = [&](std::string name, std::vector<int64_t> shape, TensorRole role) {
    specs.push_back({std::move(name), std::move(shape), ModelPart::kSsm, role});
  };
  for (int64_t i = 0; i < c.ssm.n_layer; ++i) {
    const std::string layer = StrCat("ssm.backbone.layers.", i, "."), mixer = layer + "mixer.";
    add(layer + "norm.weight", {d}, kGain);
    add(mixer + "in_proj.weight", {2 * inner, d}, kMatrix);
    add(mixer + "conv1d.weight", {inner, 1, c.ssm.d_conv}, kConv);
    add(mixer + "conv1d.bias", {inner}, kConv);
    add(mixer + "x_proj.weight", {rank + 2 * state, inner}, kMatrix);
    add(mixer + "dt_proj.weight", {inner, rank}, kTimeStepMatrix);
    add(mixer + "dt_proj.bias", {inner}, kTimeStepBias);
    add(mixer + "A_log", {inner, state}, kDecay);
    add(mixer + "D", {inner}, kSkip);
    add(mixer + "out_proj.weight", {d, inner}, kResidualMatrix);
  }
  add("ssm.backbone.norm_f.weight", {d}, kGain);
}

void AddSimpleSsm(const StrideHybridConfig& c, Specs& specs) {
  const int64_t d = c.d_model;
  const auto add = [&](std::string name, std::vector<int64_t> shape, TensorRole role) {
    specs.push_back({std::move(name), std::move(shape), ModelPart::kSsm, role});
  };
  for (int64_t i = 0; i < c.ssm.n_layer; ++i) {
    const std::string layer = StrCat("ssm.layers.", i, ".");
    add(layer + "in_proj.weight", {d, d}, kMatrix);
    add(layer + "out_proj.weight", {d, d}, kResidualMatrix);
    add(layer + "decay", {d}, kDecay);
    add(layer + "skip", {d}, kSkip);
  }
}

}  // namespace

std::string_view Name(ModelPart part) {
  switch (part) {
    case ModelPart::kTokenEmbedding:
      return "token embedding";
    case ModelPart::kPositionEmbedding:
      return "position embedding";
    case ModelPart::kTransformer:
      return "transformer";
    case ModelPart::kHead:
      return "head";
    case ModelPart::kPooling:
      return "pooling";
    case ModelPart::kSsm:
      return "ssm";
  }
  return "unknown";
}

bool StoredInModelDtype(TensorRole role) {
  return role == kEmbedding || role == kMatrix || role == kResidualMatrix || role == kPoolingMatrix ||
         role == kTimeStepMatrix;
}

int64_t TensorSpec::numel() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

std::vector<TensorSpec> ExpectedTensors(const StrideHybridConfig& c) {
  Specs specs;
  specs.push_back({"transformer.wte.weight", {c.vocab_size, c.d_model}, ModelPart::kTokenEmbedding, kEmbedding});
  specs.push_back(
      {"transformer.wpe.weight", {c.transformer.n_positions, c.d_model}, ModelPart::kPositionEmbedding, kEmbedding});
  c.transformer.kind == TransformerKind::kGpt2 ? AddGpt2(c, specs) : AddSimpleTransformer(c, specs);
  if (!c.tie_word_embeddings) {
    specs.push_back({"lm_head.weight", {c.vocab_size, c.d_model}, ModelPart::kHead, kEmbedding});
  }
  specs.push_back({"pooling.query.weight", {c.d_model, c.d_model}, ModelPart::kPooling, kPoolingMatrix});
  specs.push_back({"pooling.key.weight", {c.d_model, c.d_model}, ModelPart::kPooling, kPoolingMatrix});
  c.ssm.kind == SsmKind::kMamba ? AddMamba(c, specs) : AddSimpleSsm(c, specs);
  return specs;
}

bool IsIgnorableTensor(std::string_view name, const StrideHybridConfig& config) {
  if (name == "lm_head.weight") return config.tie_word_embeddings;
  return config.transformer.kind == TransformerKind::kGpt2 && absl::StartsWith(ToAbsl(name), "transformer.h.") &&
         (absl::EndsWith(ToAbsl(name), ".attn.bias") || absl::EndsWith(ToAbsl(name), ".attn.masked_bias"));
}

}  // namespace smt
