#include "model/import/initializer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace smt {
namespace {

// SplitMix64: one multiply-xor chain a draw, any seed is good.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) * 0x1p-53; }  // (0, 1)
  double Uniform(double low, double high) { return low + (high - low) * Uniform(); }
  double Normal() {  // Box-Muller, both halves used
    if (have_spare_) {
      have_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2 * std::log(Uniform())), angle = 2 * std::numbers::pi * Uniform();
    spare_ = radius * std::sin(angle);
    have_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  uint64_t state_;
  double spare_ = 0;
  bool have_spare_ = false;
};

uint64_t StreamOf(std::string_view name, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325u ^ Random(seed).Next();
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;  // FNV-1a
  return hash;
}

// dt with softplus(bias) = dt, dt log-uniform in [1e-3, 1e-1].
double TimeStepBias(Random& random) {
  const double dt = std::exp(random.Uniform(std::log(1e-3), std::log(1e-1)));
  return dt + std::log(-std::expm1(-dt));
}

}  // namespace

std::vector<float> InitialValues(const TensorSpec& spec, const StrideHybridConfig& config, uint64_t seed) {
  Random random(StreamOf(spec.name, seed));
  std::vector<float> values(static_cast<size_t>(spec.numel()));
  const bool ssm = spec.part == ModelPart::kSsm, mamba = ssm && config.ssm.kind == SsmKind::kMamba;
  const int64_t columns = spec.shape.back();
  const auto fill = [&](auto&& draw) {
    std::generate(values.begin(), values.end(), [&] { return static_cast<float>(draw()); });
  };
  const auto normal = [&](double deviation) { fill([&] { return deviation * random.Normal(); }); };
  const auto uniform = [&](double bound) { fill([&] { return random.Uniform(-bound, bound); }); };
  const auto inverse_root = [](int64_t count) { return 1 / std::sqrt(static_cast<double>(count)); };

  switch (spec.role) {
    case TensorRole::kEmbedding:
      normal(spec.part == ModelPart::kPositionEmbedding ? 0.01 : 0.02);
      break;
    case TensorRole::kMatrix:
      ssm ? uniform(inverse_root(columns)) : normal(0.02);
      break;
    case TensorRole::kResidualMatrix:
      ssm ? uniform(inverse_root(columns) * inverse_root(config.ssm.n_layer))
          : normal(0.02 * inverse_root(2 * config.transformer.n_layer));
      break;
    case TensorRole::kPoolingMatrix:
      normal(0.1 * inverse_root(columns));
      for (int64_t i = 0; i < columns; ++i) values[static_cast<size_t>(i * columns + i)] += 1;
      break;
    case TensorRole::kGain:
      fill([] { return 1; });
      break;
    case TensorRole::kBias:
      fill([] { return 0; });
      break;
    case TensorRole::kConv:
      uniform(inverse_root(config.ssm.d_conv));
      break;
    case TensorRole::kTimeStepBias:
      fill([&] { return TimeStepBias(random); });
      break;
    case TensorRole::kTimeStepMatrix:
      uniform(inverse_root(columns));
      break;
    case TensorRole::kDecay:
      if (mamba) {
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = static_cast<float>(std::log(static_cast<double>(1 + static_cast<int64_t>(i) % columns)));
        }
      } else {
        fill([&] { return random.Uniform(1, 5); });
      }
      break;
    case TensorRole::kSkip:
      fill([&] { return mamba ? 1 : 0; });
      break;
  }
  return values;
}

}  // namespace smt
