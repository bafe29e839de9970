#include "tests/model/tiny_models.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <cmath>
#include <limits>
#include <random>

namespace smt {
namespace {

StrideHybridConfig Shape(int64_t n, int64_t m, int64_t s, int64_t d, int64_t heads) {
  StrideHybridConfig c;
  c.n_ssm_outputs = n;
  c.m_input_tokens = m;
  c.stride = s;
  c.d_model = d;
  c.vocab_size = 37;
  c.transformer.n_head = heads;
  c.transformer.n_layer = 2;
  c.transformer.n_positions = n + m + 1;
  c.ssm.n_layer = 2;
  c.ssm.d_state = 5;
  return c;
}

std::vector<TinyCase> MakeCases() {
  std::vector<TinyCase> cases;
  cases.push_back({"Gpt2MambaWindow", Shape(3, 7, 4, 12, 3)});
  cases.push_back({"OneMemoryStrideOne", Shape(1, 2, 1, 6, 1)});
  StrideHybridConfig c = Shape(5, 9, 8, 15, 5);
  c.pool_scope = PoolScope::kTokens;
  c.tie_word_embeddings = false;
  c.ssm.d_conv = 2;
  c.ssm.expand = 3;
  c.ssm.dt_rank = 2;
  c.ssm.d_state = 3;
  cases.push_back({"Gpt2MambaTokensUntied", c});
  c = Shape(4, 11, 3, 10, 5);
  c.transformer.kind = TransformerKind::kSimple;
  c.ssm.kind = SsmKind::kSimple;
  cases.push_back({"SimpleSimpleWindow", c});
  c = Shape(15, 16, 5, 8, 2);
  c.ssm.kind = SsmKind::kSimple;
  c.ssm.n_layer = 3;
  c.pool_scope = PoolScope::kTokens;
  cases.push_back({"Gpt2SimpleTokens", c});
  c = Shape(2, 13, 6, 14, 7);
  c.transformer.kind = TransformerKind::kSimple;
  c.transformer.n_inner = 9;
  c.transformer.n_layer = 1;
  c.ssm.d_conv = 1;
  c.tie_word_embeddings = false;
  cases.push_back({"SimpleMambaWindowUntied", c});
  return cases;
}

}  // namespace

const std::vector<TinyCase>& TinyCases() {
  static const std::vector<TinyCase>* cases = new std::vector<TinyCase>(MakeCases());
  return *cases;
}

StrideHybridModel RandomModel(const StrideHybridConfig& config, uint32_t seed) {
  at::NoGradGuard no_grad;
  StrideHybridModel model(config);
  std::mt19937 random(seed);
  for (auto& item : model->named_parameters()) {
    at::Tensor& parameter = item.value();
    const at::Tensor values = at::empty(parameter.sizes(), at::kFloat);
    const bool matrix = parameter.dim() >= 2 && item.key().find("A_log") == std::string::npos;
    std::normal_distribution<float> noise(0.0f,
                                          matrix ? 0.8f / std::sqrt(static_cast<float>(parameter.size(-1))) : 0.2f);
    for (int64_t i = 0; i < values.numel(); ++i) values.data_ptr<float>()[i] = noise(random);
    // Vectors and recurrence parameters move about their initial values; matrices are drawn anew.
    parameter.copy_(matrix ? values : parameter + values);
  }
  return model;
}

std::vector<int32_t> RandomIds(int64_t count, int64_t vocab_size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % vocab_size);
  return ids;
}

at::Tensor AsTensor(const std::vector<int32_t>& ids) {
  const at::Tensor tensor = at::empty({1, static_cast<int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), tensor.data_ptr<int64_t>());
  return tensor;
}

double MaxDifference(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return std::numeric_limits<double>::infinity();
  if (a.numel() == 0) return 0;
  const at::Tensor difference = (a.to(at::kDouble) - b.to(at::kDouble)).abs();
  if (!at::isfinite(difference).all().item<bool>()) return std::numeric_limits<double>::infinity();
  return difference.max().item<double>();
}

}  // namespace smt
