// The CPU kernels against their definitions in float64, and against each other bit for bit.
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "model/ops/kernels.h"
#include "model/ops/packed_linear.h"
#include "model/ops/parallel.h"

namespace smt::ops {
namespace {

using Floats = std::vector<float>;

std::vector<const Kernels*> AllKernels() {
  std::vector<const Kernels*> all;
  for (const Kernels* kernels : {ScalarKernels(), Avx2Kernels(), Avx512Kernels()}) {
    if (kernels != nullptr) all.push_back(kernels);
  }
  return all;
}

Floats Random(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  Floats values(count);
  for (float& x : values) x = normal(engine);
  return values;
}

Floats Rounded(Floats values) {
  for (float& x : values) x = FromBf16(ToBf16(x));
  return values;
}

std::vector<uint32_t> Bits(const Floats& values) {
  std::vector<uint32_t> bits;
  for (const float x : values) bits.push_back(std::bit_cast<uint32_t>(x));
  return bits;
}

// `compute` under every table must give the bits it gives under the scalar one.
void ExpectSameBits(const std::function<Floats(const Kernels&)>& compute) {
  const Floats expected = compute(*ScalarKernels());
  for (const Kernels* kernels : AllKernels()) EXPECT_EQ(Bits(compute(*kernels)), Bits(expected)) << kernels->name;
}

struct Shape {
  int64_t m, k, n;
};
const Shape kShapes[] = {{1, 1, 1},    {1, 17, 5},   {2, 40, 33},  {3, 64, 129},
                         {5, 31, 300}, {7, 100, 64}, {13, 48, 47}, {61, 9, 200}};

Floats Product(const Kernels& kernels, const PackedLinear& linear, const Floats& x, int64_t m, Activation activation,
               const Floats& residual, int threads = 1) {
  ThreadPool pool(threads);
  const ThreadPool::Region region(pool);
  Floats y(static_cast<size_t>(m * linear.n()));
  linear.Forward(kernels, pool, x.data(), linear.k(), m, y.data(), linear.n(), activation,
                 residual.empty() ? nullptr : residual.data(), linear.n());
  return y;
}

TEST(PackedLinearTest, IsTheMatrixProductWithBiasActivationAndResidual) {
  for (const auto [m, k, n] : kShapes) {
    const Floats w = Random(k * n, 1), bias = Random(n, 2), x = Random(m * k, 3), residual = Random(m * n, 4);
    const PackedLinear linear(w.data(), k, n, n, 1, bias.data());
    EXPECT_FALSE(linear.bf16());
    const Floats y = Product(BestKernels(), linear, x, m, Activation::kRelu, residual);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = bias[j];
        for (int64_t p = 0; p < k; ++p) sum += static_cast<double>(x[i * k + p]) * w[p * n + j];
        EXPECT_NEAR(y[i * n + j], std::max(sum, 0.0) + residual[i * n + j], 1e-4) << m << " " << k << " " << n;
      }
    }
  }
}

TEST(PackedLinearTest, BothMemoryLayoutsGiveTheSameProduct) {
  const int64_t k = 21, n = 50;
  const Floats w = Random(k * n, 1), x = Random(2 * k, 2);
  Floats transposed(w.size());
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < n; ++j) transposed[j * k + i] = w[i * n + j];
  }
  const PackedLinear a(w.data(), k, n, n, 1, nullptr), b(transposed.data(), k, n, 1, k, nullptr);
  EXPECT_EQ(Bits(Product(BestKernels(), a, x, 2, Activation::kNone, {})),
            Bits(Product(BestKernels(), b, x, 2, Activation::kNone, {})));
}

TEST(PackedLinearTest, KeepsBfloat16OnlyWhereThatIsExactAndThenGivesTheSameBits) {
  const int64_t k = 70, n = 45;
  Floats w = Rounded(Random(k * n, 1));
  const Floats x = Random(3 * k, 2);
  const PackedLinear half(w.data(), k, n, n, 1, nullptr);
  ASSERT_TRUE(half.bf16());
  // One weight that needs more bits, in a column of its own, keeps all in float32.
  Floats wide(static_cast<size_t>(k * (n + 1)));
  for (int64_t i = 0; i < k; ++i) {
    std::memcpy(&wide[i * (n + 1)], &w[i * n], n * sizeof(float));
    wide[i * (n + 1) + n] = 1.0f / 3;
  }
  const PackedLinear full(wide.data(), k, n + 1, n + 1, 1, nullptr);
  ASSERT_FALSE(full.bf16());
  const Floats a = Product(BestKernels(), half, x, 3, Activation::kNone, {});
  const Floats b = Product(BestKernels(), full, x, 3, Activation::kNone, {});
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t j = 0; j < n; ++j) EXPECT_EQ(a[i * n + j], b[i * (n + 1) + j]);
  }
  EXPECT_TRUE(PackedLinear(wide.data(), k, n + 1, n + 1, 1, nullptr, /*round_to_bf16=*/true).bf16());
}

TEST(PackedLinearTest, ARowHasTheSameBitsWhateverComesWithItOnAnyInstructionSetAndThreads) {
  for (const bool exact : {false, true}) {
    for (const auto [m, k, n] : kShapes) {
      const Floats raw = Random(k * n, 5), w = exact ? Rounded(raw) : raw;
      const Floats bias = Random(n, 6), x = Random(m * k, 7), residual = Random(m * n, 8);
      const PackedLinear linear(w.data(), k, n, n, 1, bias.data());
      Floats alone;
      for (int64_t i = 0; i < m; ++i) {
        const Floats row = Product(*ScalarKernels(), linear, {x.begin() + i * k, x.begin() + (i + 1) * k}, 1,
                                   Activation::kGelu, {residual.begin() + i * n, residual.begin() + (i + 1) * n});
        alone.insert(alone.end(), row.begin(), row.end());
      }
      for (const Kernels* kernels : AllKernels()) {
        for (const int threads : {1, 3}) {
          EXPECT_EQ(Bits(Product(*kernels, linear, x, m, Activation::kGelu, residual, threads)), Bits(alone))
              << kernels->name << " " << threads << " threads, " << m << " x " << k << " x " << n;
        }
      }
    }
  }
}

TEST(Bf16Test, RoundsToNearestWithTiesToEven) {
  EXPECT_EQ(ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie, down to even
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // a tie, up to even
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(ToBf16(3.4e38f), 0x7f80);
  EXPECT_TRUE(std::isnan(FromBf16(ToBf16(std::bit_cast<float>(0x7f800001u)))));
}

double Reference(Activation activation, double x) {
  switch (activation) {
    case Activation::kGelu:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kSoftplus:
      return x > 20 ? x : std::log1p(std::exp(x));
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kNone:
      break;
  }
  return x;
}

constexpr Activation kActivations[] = {Activation::kNone, Activation::kGelu, Activation::kSoftplus,
                                       Activation::kTanh, Activation::kSilu, Activation::kRelu};

TEST(ActivationTest, IsWithinAFewUlpOfItsDefinition) {
  Floats x;
  for (float v = -30.0f; v <= 30.0f; v += 0.00731f) x.push_back(v);
  for (const Activation activation : kActivations) {
    Floats y(x.size());
    BestKernels().activate(activation, x.data(), static_cast<int64_t>(x.size()), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = Reference(activation, x[i]);
      EXPECT_NEAR(y[i], expected, 1e-6 * std::abs(expected) + 1e-7) << static_cast<int>(activation) << " " << x[i];
    }
  }
}

TEST(ActivationTest, HasTheSameBitsOnEveryInstructionSetExtremesIncluded) {
  Floats x = Random(1003, 9, 10.0f);
  for (const float extreme : {0.0f, -0.0f, 88.0f, -87.3365f, -87.34f, 89.0f, -104.0f, 1e30f, -1e30f, 1e-40f, INFINITY,
                              -INFINITY, 20.0f, -20.0f, 0.625f}) {
    x.push_back(extreme);
  }
  for (const Activation activation : kActivations) {
    ExpectSameBits([&](const Kernels& kernels) {
      Floats y(x.size());
      kernels.activate(activation, x.data(), static_cast<int64_t>(x.size()), y.data());
      return y;
    });
  }
}

TEST(NormTest, IsItsDefinitionAndTheSameBitsEverywhere) {
  for (const int64_t d : {1, 6, 16, 37, 256}) {
    Floats x = Random(d, 1, 3.0f);
    for (float& v : x) v += 2;
    const Floats gain = Random(d, 2), bias = Random(d, 3);
    double mean = 0, variance = 0, square = 0;
    for (const float v : x) mean += v / static_cast<double>(d);
    for (const float v : x) variance += (v - mean) * (v - mean) / d, square += static_cast<double>(v) * v / d;
    Floats layer(d), rms(d);
    BestKernels().layer_norm(x.data(), gain.data(), bias.data(), d, 1e-5f, layer.data());
    BestKernels().rms_norm(x.data(), gain.data(), d, 1e-5f, rms.data());
    for (int64_t i = 0; i < d; ++i) {
      EXPECT_NEAR(layer[i], (x[i] - mean) / std::sqrt(variance + 1e-5) * gain[i] + bias[i], 1e-4) << d;
      EXPECT_NEAR(rms[i], x[i] / std::sqrt(square + 1e-5) * gain[i], 1e-5) << d;
    }
    ExpectSameBits([&](const Kernels& kernels) {
      Floats y(2 * d);
      kernels.layer_norm(x.data(), gain.data(), bias.data(), d, 1e-5f, y.data());
      kernels.rms_norm(x.data(), gain.data(), d, 1e-5f, y.data() + d);
      y.push_back(kernels.dot(x.data(), gain.data(), d));
      return y;
    });
  }
}

TEST(SoftmaxTest, SumsToOneOrdersByScoreAndHasTheSameBitsEverywhere) {
  for (const int64_t count : {1, 7, 16, 65, 130}) {
    const Floats scores = Random(count, 4, 5.0f);
    double total = 0;
    for (const float s : scores) total += std::exp(0.5 * s);
    Floats y = scores;
    BestKernels().softmax(y.data(), count, 0.5f);
    for (int64_t i = 0; i < count; ++i) EXPECT_NEAR(y[i], std::exp(0.5 * scores[i]) / total, 1e-6);
    ExpectSameBits([&](const Kernels& kernels) {
      Floats z = scores;
      kernels.softmax(z.data(), count, 0.5f);
      return z;
    });
  }
}

TEST(WeightedSumTest, IsTheMeanWithoutWeights) {
  const int64_t count = 9, d = 35;
  const Floats rows = Random(count * d, 1), weights = Random(count, 2);
  Floats mean(d), sum(d);
  BestKernels().weighted_sum(rows.data(), nullptr, count, d, mean.data());
  BestKernels().weighted_sum(rows.data(), weights.data(), count, d, sum.data());
  for (int64_t e = 0; e < d; ++e) {
    double expected_mean = 0, expected_sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      expected_mean += rows[i * d + e] / static_cast<double>(count);
      expected_sum += static_cast<double>(weights[i]) * rows[i * d + e];
    }
    EXPECT_NEAR(mean[e], expected_mean, 1e-6);
    EXPECT_NEAR(sum[e], expected_sum, 1e-5);
  }
  ExpectSameBits([&](const Kernels& kernels) {
    Floats y(2 * d);
    kernels.weighted_sum(rows.data(), nullptr, count, d, y.data());
    kernels.weighted_sum(rows.data(), weights.data(), count, d, y.data() + d);
    return y;
  });
}

TEST(AttentionTest, SeesValidMemoryAndEarlierTokensOnly) {
  struct Case {
    int64_t heads, head_dim, n, w, memory_valid, position;
  };
  for (const Case c :
       {Case{1, 6, 3, 10, 0, 3}, Case{2, 16, 3, 10, 2, 7}, Case{8, 32, 15, 65, 15, 64}, Case{8, 32, 15, 65, 4, 40},
        Case{3, 5, 15, 65, 9, 8}, Case{5, 48, 2, 130, 1, 129}, Case{40, 16, 1, 3, 1, 2}}) {
    const int64_t d = c.heads * c.head_dim, padded = (c.w + 15) / 16 * 16;
    const Floats q = Random(d, 1), k = Random(padded * d, 2), v = Random(padded * d, 3);
    Floats keys(k.size());
    for (int64_t j = 0; j < padded; ++j) {
      for (int64_t e = 0; e < d; ++e) keys[e * padded + j] = k[j * d + e];
    }
    const float scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
    const auto attend = [&](const Kernels& kernels) {
      Floats scratch(c.heads * (padded + 1)), out(d);
      kernels.attention({.q = q.data(),
                         .keys = keys.data(),
                         .values = v.data(),
                         .heads = c.heads,
                         .head_dim = c.head_dim,
                         .padded = padded,
                         .memory_valid = c.memory_valid,
                         .n = c.n,
                         .position = c.position,
                         .scale = scale,
                         .scratch = scratch.data(),
                         .out = out.data()});
      return out;
    };
    const Floats out = attend(BestKernels());
    for (int64_t h = 0; h < c.heads; ++h) {
      double total = 0;
      std::vector<double> sum(c.head_dim);
      for (int64_t j = 0; j <= c.position; ++j) {
        if (j < c.n && j >= c.memory_valid && c.position >= c.n) continue;
        double score = 0;
        for (int64_t e = 0; e < c.head_dim; ++e)
          score += static_cast<double>(q[h * c.head_dim + e]) * k[j * d + h * c.head_dim + e];
        const double p = std::exp(score * scale);
        total += p;
        for (int64_t e = 0; e < c.head_dim; ++e) sum[e] += p * v[j * d + h * c.head_dim + e];
      }
      for (int64_t e = 0; e < c.head_dim; ++e) EXPECT_NEAR(out[h * c.head_dim + e], sum[e] / total, 2e-5);
    }
    ExpectSameBits(attend);
  }
}

TEST(SsmTest, ConvolutionAndScanAreTheirDefinitionsInAnySplitOfTheChannels) {
  const int64_t channels = 37, states = 19, taps = 3;
  const Floats x = Random(channels, 1), weight = Random(channels * taps, 2), bias = Random(channels, 3);
  const Floats window = Random(channels * taps, 4), a = Random(channels * states, 5), b = Random(states, 6);
  const Floats c = Random(states, 7), skip = Random(channels, 8), gate = Random(channels, 9);
  const Floats state = Random(channels * states, 10);
  Floats dt = Random(channels, 11), decay = a;
  for (float& v : dt) v = std::abs(v);
  for (float& v : decay) v = -std::abs(v);
  const auto run = [&](const Kernels& kernels, int64_t split) {
    Floats conv_state = window, next = state, u(channels), y(channels);
    const ConvArgs conv = {x.data(), weight.data(), bias.data(), conv_state.data(), taps, u.data()};
    kernels.conv(conv, 0, split);
    kernels.conv(conv, split, channels);
    const ScanArgs scan = {u.data(),    dt.data(),   decay.data(), b.data(), c.data(),
                           skip.data(), gate.data(), next.data(),  states,   y.data()};
    kernels.scan(scan, 0, split);
    kernels.scan(scan, split, channels);
    for (const Floats* part : {&conv_state, &next, &u}) y.insert(y.end(), part->begin(), part->end());
    return y;
  };
  const Floats result = run(BestKernels(), 16);
  for (int64_t i = 0; i < channels; ++i) {
    const double taps_sum = window[i * taps + 1] * weight[i * taps] + window[i * taps + 2] * weight[i * taps + 1] +
                            x[i] * weight[i * taps + 2] + bias[i];
    const double u = taps_sum / (1 + std::exp(-taps_sum));
    double y = skip[i] * u;
    for (int64_t j = 0; j < states; ++j) {
      const double next =
          std::exp(static_cast<double>(dt[i]) * decay[i * states + j]) * state[i * states + j] + dt[i] * u * b[j];
      y += next * c[j];
    }
    EXPECT_NEAR(result[i], y * gate[i] / (1 + std::exp(-gate[i])), 2e-5);
  }
  for (const int64_t split : {int64_t{0}, int64_t{1}, int64_t{30}}) {
    EXPECT_EQ(Bits(run(BestKernels(), split)), Bits(result));
  }
  ExpectSameBits([&](const Kernels& kernels) { return run(kernels, 16); });
}

TEST(ThreadPoolTest, RunsEveryPieceOnceInsideAndOutsideRegions) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int round = 0; round < 300; ++round) {
      const int64_t count = round % 23;
      std::vector<std::atomic<int>> runs(count);
      std::unique_ptr<ThreadPool::Region> region;
      if (round % 3 != 0) region = std::make_unique<ThreadPool::Region>(pool);
      for (int job = 1; job <= 4; ++job) {
        pool.For(count, [&](int64_t i) { runs[i].fetch_add(1); });
        for (const std::atomic<int>& r : runs) ASSERT_EQ(r.load(), job);
      }
    }
  }
}

}  // namespace
}  // namespace smt::ops
