// RunLinear's kernels, of which the number of rows decides: each row's bits are those of the row alone, and those near
// the product in float64. Skipped where there is no GPU.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "model/cuda/kernels.h"
#include "tests/model/cuda/on_device.h"

namespace smt::cuda {
namespace {

uint16_t ToBits(float x, Type type) {
  return type == Type::kFloat16 ? std::bit_cast<uint16_t>(__float2half_rn(x))
                                : std::bit_cast<uint16_t>(__float2bfloat16_rn(x));
}
float ToFloat(uint16_t bits, Type type) {
  return type == Type::kFloat16 ? __half2float(std::bit_cast<__half>(bits))
                                : __bfloat162float(std::bit_cast<__nv_bfloat16>(bits));
}
float Rounded(float x, Type type) { return IsShort(type) ? ToFloat(ToBits(x, type), type) : x; }
float LowPart(float x) { return x - Rounded(x, Type::kBfloat16); }

// [rows, columns] in (-largest, largest), as `type` has them.
std::vector<float> RandomMatrix(int rows, int columns, float largest, Type type, uint32_t seed) {
  std::minstd_rand random(seed);
  std::uniform_real_distribution<float> uniform(-largest, largest);
  std::vector<float> values(static_cast<size_t>(rows) * static_cast<size_t>(columns));
  for (float& value : values) value = Rounded(uniform(random), type);
  return values;
}

// In `planes` of 16-bit numbers, or as floats: element (row, column) of `from` [rows, columns] at row * step_row +
// column
// * step_column of `size`, the rest zeros.
std::vector<std::byte> Placed(const std::vector<float>& from, int columns, Type type, bool split, size_t size,
                              size_t step_row, size_t step_column) {
  const size_t bytes = IsShort(type) || split ? 2 : 4;
  std::vector<std::byte> to(size * (split ? 4 : bytes));
  for (size_t i = 0; i < from.size(); ++i) {
    const size_t row = i / static_cast<size_t>(columns), column = i % static_cast<size_t>(columns);
    const size_t at = row * step_row + column * step_column;
    if (bytes == 4) {
      std::memcpy(&to[4 * at], &from[i], 4);
      continue;
    }
    const uint16_t high = ToBits(from[i], type);
    std::memcpy(&to[2 * at], &high, 2);
    if (!split) continue;
    const uint16_t low = ToBits(LowPart(from[i]), type);
    std::memcpy(&to[2 * (size + at)], &low, 2);
  }
  return to;
}

size_t RoundUp(int value, int to) {
  const int rounded = (value + to - 1) / to * to;
  return static_cast<size_t>(rounded);
}

// Weights as kernels.h has them.
class Weights {
 public:
  Weights(const std::vector<float>& values, const std::vector<float>& bias, int n, int k, Type type)
      : plane_(RoundUp(n, 64) * static_cast<size_t>(Padded(k))),
        packed_(type == Type::kFloat32
                    ? Placed(values, k, type, false, static_cast<size_t>(Padded(k)) * RoundUp(n, 32), 1, RoundUp(n, 32))
                    : Placed(values, k, type, type == Type::kSplit, plane_, static_cast<size_t>(Padded(k)), 1)),
        bias_(bias),
        linear_{type, packed_.get(), nullptr, n, Padded(k), static_cast<int64_t>(plane_)} {}
  Linear linear(bool bias) const {
    Linear linear = linear_;
    if (bias) linear.bias = bias_.get();
    return linear;
  }

 private:
  const size_t plane_;
  const OnDevice<std::byte> packed_;
  const OnDevice<float> bias_;
  const Linear linear_;
};

enum class Residual { kNone, kInPlace, kElsewhere };
// What happens to the sums, and how far apart rows of outputs are.
struct Ending {
  bool bias;
  Activation activation;
  bool float_output;
  Residual residual;
  bool odd_rows = false;  // not aligned
};
std::string Name(const Ending& ending) {
  return std::string(ending.bias ? "bias, " : "") + "activation " +
         std::to_string(static_cast<int>(ending.activation)) + (ending.float_output ? ", float" : ", 16 bits") +
         (ending.residual == Residual::kNone      ? ""
          : ending.residual == Residual::kInPlace ? ", in place"
                                                  : ", residual") +
         (ending.odd_rows ? ", odd rows" : "");
}
std::vector<Ending> EndingsOf(Type type) {
  std::vector<Ending> endings = {
      {false, Activation::kNone, true, Residual::kNone},    {true, Activation::kNone, true, Residual::kInPlace},
      {false, Activation::kNone, true, Residual::kInPlace}, {true, Activation::kRelu, true, Residual::kElsewhere},
      {true, Activation::kSoftplus, true, Residual::kNone}, {true, Activation::kGelu, true, Residual::kNone, true}};
  if (!IsShort(type)) return endings;
  endings.push_back({true, Activation::kNone, false, Residual::kNone});
  endings.push_back({true, Activation::kGelu, false, Residual::kNone});
  endings.push_back({false, Activation::kRelu, false, Residual::kNone});
  endings.push_back({true, Activation::kGelu, false, Residual::kElsewhere});
  endings.push_back({false, Activation::kNone, false, Residual::kNone, true});
  return endings;
}

double Activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kGelu:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSoftplus:
      return x > 20 ? x : std::log1p(std::exp(x));
  }
  return x;
}

// A product of many rows, how the kernels do it with any of them and what it is.
class Product {
 public:
  Product(Type type, int n, int k, int rows)
      : type_(type),
        n_(n),
        k_(k),
        rows_(rows),
        ldx_(Padded(k) + kPad),
        w_(RandomMatrix(n, k, 3 / std::sqrt(static_cast<float>(k)), type, 1)),
        x_(RandomRows(rows, k, type)),
        bias_(RandomMatrix(1, n, 1, Type::kFloat32, 3)),
        residual_(RandomMatrix(rows, n + kPad, 2, Type::kFloat32, 4)),
        weights_(w_, bias_, n, k, type),
        x_on_device_(Placed(x_, k, type == Type::kSplit ? Type::kFloat32 : type, false, XSize(), Ldx(), 1)),
        scratch_(std::vector<std::byte>(type == Type::kSplit ? XSize() * 4 : 0)),
        tickets_(std::vector<uint32_t>(1)),
        residual_on_device_(residual_),
        y_(std::vector<std::byte>(YBytes())) {
    if (type == Type::kSplit) planes_.emplace(Placed(x_, k, type, true, XSize(), Ldx(), 1));
  }

  struct Call {
    int first, rows;
    int spare = 0;
    bool planes = false;  // split rows come as such
  };
  // The outputs' rows and what else is in their memory: before the call it is kUntouched, or the residual in place.
  std::vector<std::byte> Run(const Ending& ending, const Call& call) const {
    Fill(ending, call);
    Queue(ending, call, y_.get());
    return y_.Fetch(static_cast<size_t>(call.rows + 1) * RowBytes(ending));
  }
  // The sums alone, of what RunLinearApart leaves where it leaves anything; so many `addends`.
  static constexpr Ending kSums = {false, Activation::kNone, true, Residual::kNone};
  std::vector<std::byte> RunApart(const Call& call, int* addends) const {
    const OnDevice<float> room(std::vector<float>(static_cast<size_t>(kMaxAddends * call.rows * Ldy(kSums))));
    Fill(kSums, call);
    const Addends left =
        RunLinearApart(weights_.linear(false), CallOf(kSums, call, y_.get()),
                       {room.get(), static_cast<int64_t>(kMaxAddends) * call.rows * Ldy(kSums)}, nullptr);
    *addends = left.count;
    if (left.count > 0) {
      SumAddends(left, call.rows, n_, reinterpret_cast<float*>(y_.get()), Ldy(kSums), nullptr);
    }
    return y_.Fetch(static_cast<size_t>(call.rows) * RowBytes(kSums));
  }
  // The same of all rows, each in a call of its own.
  std::vector<std::byte> RunEachAlone(const Ending& ending) const {
    Fill(ending, {0, rows_});
    for (int row = 0; row < rows_; ++row) {
      Queue(ending, {row, 1}, y_.get() + static_cast<size_t>(row) * RowBytes(ending));
    }
    return y_.Fetch(static_cast<size_t>(rows_ + 1) * RowBytes(ending));
  }

  int64_t Ldy(const Ending& ending) const { return ending.odd_rows ? n_ + 3 - n_ % 2 : Padded(n_); }
  size_t RowBytes(const Ending& ending) const {
    return static_cast<size_t>(Ldy(ending)) * (ending.float_output ? 4 : 2);
  }

  // Checks some of the rows of RunEachAlone.
  void ExpectNear(const Ending& ending, const std::vector<std::byte>& got) const {
    for (int row = 0; row < rows_; row += std::max(rows_ / 5, 1)) {
      for (int j = 0; j < n_; ++j) {
        double sum = 0, size = 0;
        for (int i = 0; i < k_; ++i) {
          const double term = static_cast<double>(At(x_, row, i, k_)) * static_cast<double>(At(w_, j, i, k_));
          sum += term;
          size += std::abs(term);
        }
        if (ending.bias) sum += static_cast<double>(bias_[static_cast<size_t>(j)]);
        double want = Activated(ending.activation, sum);
        // Of split numbers 2^-18 a part is missing; no activation is steeper than 1.13.
        const double tolerance = 1.2 * size * (type_ == Type::kSplit ? 2e-5 : 1e-5) + 4e-6 * std::abs(want) + 1e-6;
        if (ending.residual != Residual::kNone) want += static_cast<double>(ResidualAt(ending, row, j));
        const double rounding = ending.float_output ? 2e-7 : type_ == Type::kFloat16 ? 0x1p-11 : 0x1p-8;
        ASSERT_NEAR(ValueAt(ending, got, row, j), want, tolerance + rounding * std::abs(want))
            << "row " << row << ", output " << j;
      }
    }
  }

 private:
  static constexpr std::byte kUntouched{0xa5};

  // Each of another magnitude, so that what leaks from one into another shows.
  static std::vector<float> RandomRows(int rows, int k, Type type) {
    std::vector<float> x = RandomMatrix(rows, k, 1, Type::kFloat32, 2);
    for (size_t i = 0; i < x.size(); ++i) {
      const int row = static_cast<int>(i / static_cast<size_t>(k));
      x[i] = Rounded(std::ldexp(x[i], row % 5 - 2), type);
    }
    return x;
  }
  static float At(const std::vector<float>& matrix, int row, int column, int columns) {
    return matrix[static_cast<size_t>(row) * static_cast<size_t>(columns) + static_cast<size_t>(column)];
  }
  size_t Ldx() const { return static_cast<size_t>(ldx_); }
  size_t XSize() const { return static_cast<size_t>(rows_) * Ldx(); }
  size_t YBytes() const { return static_cast<size_t>(rows_ + 1) * static_cast<size_t>(n_ + kPad) * 4; }
  float ResidualAt(const Ending& ending, int row, int j) const {
    return residual_[static_cast<size_t>(row * Ldy(ending) + j)];
  }
  double ValueAt(const Ending& ending, const std::vector<std::byte>& y, int row, int j) const {
    const std::byte* const at = &y[static_cast<size_t>(row) * RowBytes(ending)];
    if (!ending.float_output) {
      uint16_t bits;
      std::memcpy(&bits, at + 2 * j, 2);
      return static_cast<double>(ToFloat(bits, type_));
    }
    float value;
    std::memcpy(&value, at + 4 * j, 4);
    return static_cast<double>(value);
  }

  void Fill(const Ending& ending, const Call& call) const {
    CheckCuda(cudaMemset(y_.get(), static_cast<int>(kUntouched), YBytes()), "filling");
    if (ending.residual != Residual::kInPlace) return;
    CheckCuda(cudaMemcpy(y_.get(), residual_on_device_.get() + call.first * Ldy(ending),
                         static_cast<size_t>(call.rows) * RowBytes(ending), cudaMemcpyDeviceToDevice),
              "filling");
  }
  LinearCall CallOf(const Ending& ending, const Call& call, std::byte* y) const {
    const size_t element = IsShort(type_) ? 2 : 4;
    LinearCall linear_call = {.x = x_on_device_.get() + static_cast<size_t>(call.first) * Ldx() * element,
                              .ldx = ldx_,
                              .rows = call.rows,
                              .y = y,
                              .ldy = Ldy(ending),
                              .float_output = ending.float_output,
                              .residual = nullptr,
                              .activation = ending.activation,
                              .scratch = scratch_.get(),
                              .spare = call.spare,
                              .tickets = tickets_.get()};
    if (ending.residual == Residual::kInPlace) linear_call.residual = reinterpret_cast<const float*>(y);
    if (ending.residual == Residual::kElsewhere) {
      linear_call.residual = residual_on_device_.get() + call.first * Ldy(ending);
    }
    if (call.planes) {
      auto* const planes = reinterpret_cast<__nv_bfloat16*>(planes_->get());
      linear_call.split = {planes + static_cast<size_t>(call.first) * Ldx(), static_cast<int64_t>(XSize())};
    }
    return linear_call;
  }
  void Queue(const Ending& ending, const Call& call, std::byte* y) const {
    RunLinear(weights_.linear(ending.bias), CallOf(ending, call, y), nullptr);
  }

  const Type type_;
  const int n_, k_, rows_;
  const int64_t ldx_;
  const std::vector<float> w_, x_, bias_, residual_;
  const Weights weights_;
  const OnDevice<std::byte> x_on_device_;
  std::optional<OnDevice<std::byte>> planes_;
  const OnDevice<std::byte> scratch_;
  const OnDevice<uint32_t> tickets_;
  const OnDevice<float> residual_on_device_;
  const OnDevice<std::byte> y_;
};

class LinearTest : public OnGpu<testing::TestWithParam<Type>> {
 protected:
  // Calls of all sizes and from everywhere in `most` rows, on all multiprocessors and on few.
  static void ExpectRowsAsAlone(Type type, int n, int k, const std::vector<int>& row_counts,
                                const std::vector<Ending>& endings) {
    const int most = row_counts.back();
    const Product product(type, n, k, most);
    const bool is_split = type == Type::kSplit;
    for (const Ending& ending : endings) {
      SCOPED_TRACE("n " + std::to_string(n) + ", k " + std::to_string(k) + ", " + Name(ending));
      const std::vector<std::byte> alone = product.RunEachAlone(ending);
      product.ExpectNear(ending, alone);
      const size_t row_bytes = product.RowBytes(ending);
      for (const int rows : row_counts) {
        for (const Product::Call call :
             {Product::Call{0, rows}, Product::Call{(most - rows) / 3, rows, Multiprocessors() / 3, is_split},
              Product::Call{most - rows, rows, Multiprocessors() - 12}}) {
          std::vector<std::byte> got = product.Run(ending, call);
          std::vector<std::byte> want(&alone[static_cast<size_t>(call.first) * row_bytes],
                                      &alone[static_cast<size_t>(call.first + rows) * row_bytes]);
          want.insert(want.end(), alone.end() - static_cast<int64_t>(row_bytes), alone.end());  // behind: untouched
          ASSERT_EQ(got.size(), want.size());
          const size_t used = static_cast<size_t>(n) * (ending.float_output ? 4 : 2);
          for (int row = 0; row < rows; ++row) {  // what pads a row may be overwritten
            const auto from = static_cast<int64_t>(static_cast<size_t>(row) * row_bytes + used);
            std::copy_n(want.begin() + from, row_bytes - used, got.begin() + from);
          }
          if (std::memcmp(got.data(), want.data(), got.size()) == 0) continue;
          const auto at = static_cast<size_t>(std::mismatch(got.begin(), got.end(), want.begin()).first - got.begin());
          ADD_FAILURE() << rows << " rows from " << call.first << ", spare " << call.spare << ": row " << at / row_bytes
                        << ", column " << at % row_bytes / (ending.float_output ? 4 : 2);
        }
      }
    }
  }
};

TEST_P(LinearTest, EachRowHasTheBitsOfTheRowAlone) {
  for (const int n : {80, 768, 1000, 2304}) {
    for (const int k : {48, 768, 1536, 3072}) {
      ExpectRowsAsAlone(GetParam(), n, k, {1, 5, 8, 9, 16, 17, 32, 33, 50, 64, 65, 128, 256, 300, 1008},
                        EndingsOf(GetParam()));
    }
  }
}

TEST_P(LinearTest, EachRowOfAVocabularysLogitsHasTheBitsOfTheRowAlone) {
  ExpectRowsAsAlone(GetParam(), 50257, 768, {1, 17, 64, 260}, {{false, Activation::kNone, true, Residual::kNone}});
}

TEST_P(LinearTest, AddendsAddUpToTheBitsOfTheRowAlone) {
  const Type type = GetParam();
  bool left_any = false;
  for (const int n : {80, 768, 2304}) {
    for (const int k : {48, 256, 768, 1280, 1536, 3072}) {
      constexpr int kMost = 300;
      const Product product(type, n, k, kMost);
      const std::vector<std::byte> alone = product.RunEachAlone(Product::kSums);
      product.ExpectNear(Product::kSums, alone);
      const size_t row_bytes = product.RowBytes(Product::kSums);
      for (const int rows : {1, 7, 33, 64, 65, 200, kMost}) {
        for (const int spare : {0, Multiprocessors() / 3, Multiprocessors() - 12}) {
          const Product::Call call = {(kMost - rows) / 2, rows, spare, type == Type::kSplit};
          int addends = 0;
          const std::vector<std::byte> got = product.RunApart(call, &addends);
          left_any |= addends > 0;
          for (int row = 0; row < rows; ++row) {
            const size_t at = static_cast<size_t>(row) * row_bytes, from = static_cast<size_t>(call.first) * row_bytes;
            ASSERT_EQ(std::memcmp(&got[at], &alone[from + at], static_cast<size_t>(n) * 4), 0)
                << "n " << n << ", k " << k << ", " << rows << " rows, spare " << spare << ", " << addends
                << " addends: row " << row;
          }
        }
      }
    }
  }
  EXPECT_EQ(left_any, CanLeaveAddends() && type != Type::kFloat32);
}

std::string NameOfType(const testing::TestParamInfo<Type>& tested) {
  constexpr const char* kNames[] = {"Float32", "Bfloat16", "Float16", "Split"};
  return kNames[static_cast<int>(tested.param)];
}
INSTANTIATE_TEST_SUITE_P(Types, LinearTest,
                         testing::Values(Type::kFloat32, Type::kBfloat16, Type::kFloat16, Type::kSplit), NameOfType);

}  // namespace
}  // namespace smt::cuda
