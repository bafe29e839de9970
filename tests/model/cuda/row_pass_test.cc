// The kernel of one row against the one of few rows (window_pass.cu), bit for bit: what comes out and what goes into
// the cache. Skipped where there is no GPU, and where it runs neither.
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "model/cuda/kernels.h"
#include "tests/model/cuda/on_device.h"

namespace smt::cuda {
namespace {

constexpr int kMemory = 15, kTokens = 50, kWindow = kMemory + kTokens, kVocab = 300, kSlots = 3;

uint16_t Shortened(float value, Type type) {
  if (type == Type::kBfloat16) {
    const __nv_bfloat16 number = __float2bfloat16(value);
    return *reinterpret_cast<const uint16_t*>(&number);
  }
  const __half number = __float2half(value);
  return *reinterpret_cast<const uint16_t*>(&number);
}

struct Shape {
  int d, heads, layers;
};

// A transformer of random weights, the sessions' caches, and what a pass of one row needs.
class RowModel {
 public:
  RowModel(const Shape& shape, Type type, Type embedding_type) : shape_(shape), type_(type) {
    const int d = shape.d, inner = 4 * d;
    std::vector<BlockWeights> blocks(static_cast<size_t>(shape.layers));
    for (BlockWeights& block : blocks) {
      block.norm_1 = RandomNorm();
      block.norm_2 = RandomNorm();
      block.qkv = RandomLinear(3 * d, d);
      block.proj = RandomLinear(d, d);
      block.fc = RandomLinear(inner, d);
      block.mlp_proj = RandomLinear(d, inner);
    }
    blocks_ = std::make_unique<OnDevice<BlockWeights>>(blocks);
    pass_.blocks = blocks_->get();
    pass_.layers = shape.layers;
    pass_.norm_f = RandomNorm();
    pass_.epsilon = 1e-5f;
    pass_.activation = Activation::kGelu;
    pass_.embedding_type = embedding_type;
    pass_.embeddings = embedding_type == Type::kBfloat16 ? static_cast<void*>(Shorts(kVocab * d, 0.5f, Type::kBfloat16))
                                                         : static_cast<void*>(Floats(kVocab * d, 0, 0.5f));
    pass_.ld_embeddings = d;
    pass_.positions = Floats(kWindow * d, 0, 0.1f);
    pass_.slots = {reinterpret_cast<std::byte*>(Floats(kSlots * kMemory * d, 0, 1)), int64_t{kMemory} * d * 4, 0, 0, 0};
    pass_.cache = {.type = type,
                   .base = nullptr,
                   .slot_stride = int64_t{shape.layers} * 2 * kWindow * d,
                   .layer_stride = int64_t{2} * kWindow * d,
                   .window = kWindow,
                   .d = d};
    for (int64_t i = 0; i < kSlots * pass_.cache.slot_stride; ++i) before_.push_back(Shortened(Uniform(), type));
    cache_ = std::make_unique<OnDevice<uint16_t>>(before_);
    pass_.cache.base = cache_->get();
    pass_.heads = shape.heads;
    pass_.n = kMemory;
    pass_.scale = GroupScale(d / shape.heads);
    pass_.x = Floats(d, 0, 0);
    pass_.x_wanted = Floats(d, 0, 0);
    pass_.normed = Shorts(d, 0, type);
    pass_.qkv = Shorts(3 * d, 0, type);
    pass_.attended = Shorts(d, 0, type);
    pass_.inner = Shorts(inner, 0, type);
    outputs_ = std::make_unique<OnDevice<uint16_t>>(std::vector<uint16_t>(static_cast<size_t>(kSlots * d)));
    pass_.outputs = outputs_->get();
    pass_.ld = d;
    pass_.ld_qkv = 3 * d;
    pass_.ld_inner = inner;
    pass_.row_count = pass_.group_count = 1;
    exchange_ = std::make_unique<OnDevice<uint64_t>>(std::vector<uint64_t>(RowPassExchangeBytes(d, inner) / 8));
    pass_.exchange = exchange_->get();
    pass_.tag = 1;
    arrivals_ = {arrived_.get(), 0};
  }

  bool CanRunOn(int blocks) const {
    return CanRunWindowPass(pass_.cache, shape_.heads, 4 * shape_.d, shape_.layers) &&
           CanRunRowPass(pass_.cache, shape_.heads, 4 * shape_.d, shape_.layers, blocks);
  }
  void SetTag(uint32_t tag) { pass_.tag = tag; }

  // The row is its session's first_key-th key (from 0), of which memory_valid are memory. What is in the cache and the
  // outputs afterwards. blocks: of RunRowPass, or 0 for RunWindowPass.
  std::vector<uint16_t> Run(int slot, int first_key, int memory_valid, bool keep_tokens, int blocks) {
    const bool of_memory = first_key < memory_valid;
    const Row row = {.slot = slot,
                     .column = of_memory ? first_key : kMemory + first_key - memory_valid,
                     .memory_valid = memory_valid,
                     .source = of_memory ? -1 - first_key : 7 * first_key % kVocab};
    const Group group = {.slot = slot, .first_row = 0, .rows = 1, .first_key = first_key, .memory_valid = memory_valid};
    const OnDevice<Row> rows(std::vector<Row>{row});
    const OnDevice<Group> groups(std::vector<Group>{group});
    const OnDevice<int32_t> to_slots(std::vector<int32_t>{slot});
    cache_->Put(before_);
    outputs_->Put(std::vector<uint16_t>(static_cast<size_t>(kSlots * shape_.d), 0));
    WindowPass pass = pass_;
    pass.rows = rows.get();
    pass.groups = groups.get();
    pass.to_slots = to_slots.get();
    pass.keep_tokens = keep_tokens;
    if (blocks > 0) {
      RunRowPass(pass, &arrivals_, blocks, nullptr);
      pass_.tag += static_cast<uint32_t>(shape_.layers);
    } else {
      RunWindowPass(pass, &arrivals_, 0, nullptr);
    }
    std::vector<uint16_t> all = outputs_->Fetch();
    const std::vector<uint16_t> cached = cache_->Fetch();
    all.insert(all.end(), cached.begin(), cached.end());
    return all;
  }

 private:
  float Uniform() { return std::uniform_real_distribution<float>(-1, 1)(random_); }
  float* Floats(int count, float mean, float largest) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = mean + largest * Uniform();
    floats_.push_back(std::make_unique<OnDevice<float>>(values));
    return floats_.back()->get();
  }
  uint16_t* Shorts(int count, float largest, Type type) {
    std::vector<uint16_t> values(static_cast<size_t>(count));
    for (uint16_t& value : values) value = Shortened(largest * Uniform(), type);
    shorts_.push_back(std::make_unique<OnDevice<uint16_t>>(values));
    return shorts_.back()->get();
  }
  Norm RandomNorm() { return {Floats(shape_.d, 1, 0.1f), Floats(shape_.d, 0, 0.1f)}; }
  Linear RandomLinear(int n, int k) {
    Linear linear;
    linear.type = type_;
    linear.weight = Shorts(n * k, 1 / std::sqrt(static_cast<float>(k)), type_);
    linear.bias = Floats(n, 0, 0.1f);
    linear.n = n;
    linear.k = k;
    return linear;
  }

  const Shape shape_;
  const Type type_;
  std::minstd_rand random_{5};
  std::vector<std::unique_ptr<OnDevice<float>>> floats_;
  std::vector<std::unique_ptr<OnDevice<uint16_t>>> shorts_;
  std::vector<uint16_t> before_;
  std::unique_ptr<OnDevice<BlockWeights>> blocks_;
  std::unique_ptr<OnDevice<uint16_t>> cache_, outputs_;
  std::unique_ptr<OnDevice<uint64_t>> exchange_;
  const OnDevice<uint32_t> arrived_{std::vector<uint32_t>{0}};
  Arrivals arrivals_ = {};
  WindowPass pass_ = {};
};

class RowPassTest : public OnGpu<testing::TestWithParam<std::tuple<Shape, Type, Type>>> {
 protected:
  std::unique_ptr<RowModel> New() {
    const auto& [shape, type, embedding_type] = GetParam();
    return std::make_unique<RowModel>(shape, type, embedding_type);
  }
};

TEST_P(RowPassTest, GivesTheBitsOfTheKernelOfFewRowsInWindowsOfAllLengths) {
  const auto model = New();
  const int all = Multiprocessors();
  if (!model->CanRunOn(all)) GTEST_SKIP() << "this device runs such rows in other kernels";
  for (const int memory : {0, 1, 7, kMemory}) {
    for (const int key : {0, 1, memory - 1, memory, memory + 1, 15, 16, 31, 32, 47, 48, memory + kTokens - 1}) {
      if (key < 0 || key >= memory + kTokens) continue;
      const int slot = (key + memory) % kSlots;
      SCOPED_TRACE("key " + std::to_string(key) + ", memory " + std::to_string(memory));
      ASSERT_EQ(model->Run(slot, key, memory, true, all), model->Run(slot, key, memory, true, 0));
    }
  }
  EXPECT_EQ(model->Run(1, 40, kMemory, false, all), model->Run(1, 40, kMemory, false, 0));
  EXPECT_EQ(model->Run(1, 3, kMemory, false, all), model->Run(1, 3, kMemory, false, 0));
}

TEST_P(RowPassTest, DoesNotDependOnTheMultiprocessorsThatItHas) {
  const auto model = New();
  const int all = Multiprocessors();
  if (!model->CanRunOn(all)) GTEST_SKIP() << "this device runs such rows in other kernels";
  const std::vector<uint16_t> expected = model->Run(0, 50, kMemory, true, 0);
  int fewer = 0;
  for (int blocks = all; blocks > 0; blocks -= 7) {
    if (!model->CanRunOn(blocks)) continue;
    ++fewer;
    ASSERT_EQ(model->Run(0, 50, kMemory, true, blocks), expected) << blocks;
  }
  EXPECT_GT(fewer, 1);
}

TEST_P(RowPassTest, TakesTagsUpToTheLast) {
  const auto model = New();
  const int all = Multiprocessors();
  if (!model->CanRunOn(all)) GTEST_SKIP() << "this device runs such rows in other kernels";
  const std::vector<uint16_t> expected = model->Run(2, 33, 9, true, 0);
  const auto layers = static_cast<uint32_t>(std::get<0>(GetParam()).layers);
  model->SetTag(std::numeric_limits<uint32_t>::max() - 2 * layers);
  EXPECT_EQ(model->Run(2, 33, 9, true, all), expected);
  EXPECT_EQ(model->Run(2, 33, 9, true, all), expected);
}

std::string NameOf(const testing::TestParamInfo<RowPassTest::ParamType>& info) {
  const auto& [shape, type, embedding_type] = info.param;
  return std::to_string(shape.d) + (type == Type::kFloat16 ? "Half" : "Bfloat") +
         (embedding_type == Type::kFloat32 ? "FloatEmbeddings" : "BfloatEmbeddings");
}

INSTANTIATE_TEST_SUITE_P(Shapes, RowPassTest,
                         testing::Combine(testing::Values(Shape{256, 8, 5}, Shape{768, 12, 3}, Shape{1024, 16, 2}),
                                          testing::Values(Type::kBfloat16, Type::kFloat16),
                                          testing::Values(Type::kFloat32, Type::kBfloat16)),
                         NameOf);

}  // namespace
}  // namespace smt::cuda
