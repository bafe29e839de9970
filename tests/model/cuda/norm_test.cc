// Norms that first finish a product: near float64, and to the bits of adding up and normalizing in turn. Skipped where
// there is no GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "model/cuda/kernels.h"
#include "tests/model/cuda/on_device.h"

namespace smt::cuda {
namespace {

constexpr float kEpsilon = 1e-5f;

std::vector<float> RandomFloats(size_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  std::uniform_real_distribution<float> uniform(-2, 2);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(random);
  return values;
}

struct Shape {
  int d, addends;
  bool centered, bias;  // LayerNorm; a product with a bias
};
class FinishTest : public OnGpu<testing::TestWithParam<Shape>> {};

TEST_P(FinishTest, EqualsAddingUpAndNormalizing) {
  const Shape shape = GetParam();
  constexpr size_t kRows = 5;
  const auto d = static_cast<size_t>(shape.d), ld = static_cast<size_t>(Padded(shape.d));
  const std::vector<float> addends = RandomFloats(kMaxAddends * kRows * ld, 1), x = RandomFloats(kRows * ld, 2),
                           bias = RandomFloats(ld, 3), weight = RandomFloats(ld, 4), norm_bias = RandomFloats(ld, 5);
  const std::vector<int32_t> to_rows = {3, 0, 4, 1, 2};
  const OnDevice<float> on_device(addends), device_bias(bias), device_weight(weight), device_norm_bias(norm_bias);
  const OnDevice<int32_t> device_to_rows(to_rows);
  const Addends left = {on_device.get(), static_cast<int64_t>(kRows * ld), static_cast<int64_t>(ld), shape.addends};
  const float* const product_bias = shape.bias ? device_bias.get() : nullptr;
  const Norm norm = {device_weight.get(), shape.centered ? device_norm_bias.get() : nullptr};

  // What the rows are then, in the order of kernels.h.
  std::vector<float> want = x;
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t i = 0; i < d && shape.addends > 0; ++i) {
      float sum = addends[row * ld + i];
      for (int a = 1; a < shape.addends; ++a) sum += addends[(static_cast<size_t>(a) * kRows + row) * ld + i];
      if (shape.bias) sum += bias[i];
      want[row * ld + i] = sum + x[row * ld + i];
    }
  }
  for (const Type type : {Type::kFloat32, Type::kBfloat16, Type::kFloat16}) {
    const size_t bytes = kRows * ld * static_cast<size_t>(SizeOf(type));
    const OnDevice<float> finished(x), summed(want);
    const OnDevice<std::byte> y(std::vector<std::byte>(bytes, std::byte{0x5a})), y_in_turn(y.Fetch());
    FinishAndNormalize(type, left, product_bias, finished.get(), static_cast<int64_t>(ld), device_to_rows.get(), kRows,
                       shape.d, norm, kEpsilon, y.get(), static_cast<int64_t>(ld), nullptr);
    Normalize(type, summed.get(), static_cast<int64_t>(ld), device_to_rows.get(), kRows, shape.d, norm.weight,
              norm.bias, kEpsilon, y_in_turn.get(), static_cast<int64_t>(ld), nullptr);
    EXPECT_EQ(finished.Fetch(), want);
    EXPECT_EQ(y.Fetch(), y_in_turn.Fetch());
    if (type != Type::kFloat32) continue;
    const std::vector<std::byte> got = y.Fetch();
    for (size_t row = 0; row < kRows; ++row) {
      double mean = 0, squares = 0;
      for (size_t i = 0; i < d; ++i) mean += static_cast<double>(want[row * ld + i]) / static_cast<double>(d);
      if (!shape.centered) mean = 0;
      for (size_t i = 0; i < d; ++i) {
        const double from_mean = static_cast<double>(want[row * ld + i]) - mean;
        squares += from_mean * from_mean / static_cast<double>(d);
      }
      for (size_t i = 0; i < d; ++i) {
        double value = (static_cast<double>(want[row * ld + i]) - mean) /
                       std::sqrt(squares + static_cast<double>(kEpsilon)) * static_cast<double>(weight[i]);
        if (shape.centered) value += static_cast<double>(norm_bias[i]);
        float found;
        std::memcpy(&found, &got[(static_cast<size_t>(to_rows[row]) * ld + i) * 4], 4);
        ASSERT_NEAR(static_cast<double>(found), value, 1e-5) << "row " << row << ", column " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FinishTest,
                         testing::Values(Shape{64, 2, true, true}, Shape{768, 0, true, false},
                                         Shape{768, 1, true, true}, Shape{768, 5, true, true},
                                         Shape{768, 8, false, false}, Shape{1000, 3, true, false},
                                         Shape{1024, 8, true, true}),
                         [](const auto& tested) {
                           const Shape& shape = tested.param;
                           return "D" + std::to_string(shape.d) + "Addends" + std::to_string(shape.addends) +
                                  (shape.centered ? "Layer" : "Rms") + (shape.bias ? "Bias" : "");
                         });

}  // namespace
}  // namespace smt::cuda
