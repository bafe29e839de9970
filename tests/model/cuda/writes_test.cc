// The kernels of few writes against the separate ones (memory.cu), bit for bit: states, memory, outputs and pool
// weights. Skipped where there is no GPU, and where it has only the separate ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "model/cuda/memory_layers.h"
#include "model/cuda/streams.h"
#include "model/cuda/write_pass.h"
#include "tests/model/cuda/on_device.h"

namespace smt::cuda {
namespace {

constexpr int kRing = 64;  // ids of a slot

StrideHybridConfig NewConfig(int64_t d, int64_t layers, int64_t dt_rank) {
  StrideHybridConfig config;
  config.vocab_size = 300;
  config.d_model = d;
  config.transformer.n_layer = 0;
  config.transformer.n_positions = config.window();
  config.ssm.n_layer = layers;
  config.ssm.dt_rank = dt_rank;
  return config;
}
StrideHybridConfig Usual() { return NewConfig(768, 3, 48); }
StrideHybridConfig Narrow() { return NewConfig(72, 5, 6); }  // nothing is a multiple of a tile

// Random weights of a plausible size.
WeightSource RandomWeights(bool embeddings_of_16_bits) {
  return [=](const std::string& name, const std::vector<int64_t>& shape) -> absl::StatusOr<std::vector<float>> {
    std::minstd_rand random(static_cast<uint32_t>(std::hash<std::string>()(name)));
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> values(
        static_cast<size_t>(std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>())));
    const bool matrix = shape.size() == 2 && name.find("A_log") == std::string::npos;
    const bool embeddings = name.find("wte") != std::string::npos;
    const float largest = matrix && !embeddings ? 3 / std::sqrt(static_cast<float>(shape[1])) : 1;
    const float mean = name.find("norm") != std::string::npos || name.find("A_log") != std::string::npos ? 1.2f : 0;
    for (float& value : values) {
      value = mean + largest * uniform(random);
      if (embeddings && embeddings_of_16_bits) {
        value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0xffff0000u);
      }
    }
    return values;
  };
}

struct Model {
  StrideHybridConfig config;
  std::unique_ptr<CudaWeights> weights;

  Model(const StrideHybridConfig& config, bool embeddings_of_16_bits)
      : config(config),
        weights(CudaWeights::Load(config, RandomWeights(embeddings_of_16_bits), Type::kBfloat16).value()) {}
};

// All slots of some sessions in device memory.
class Sessions {
 public:
  Sessions(const StrideHybridConfig& config, int count) : values_(RandomValues(config, count)), memory_(values_) {
    const int64_t floats = Floats(config, &memory_at_, &conv_at_, &state_at_);
    stride_ = floats * 4;
  }
  SlotMemory slots() const {
    return {reinterpret_cast<std::byte*>(memory_.get()), stride_, memory_at_, conv_at_, state_at_};
  }
  void BeginAnew() const { memory_.Put(values_); }
  std::vector<float> Fetch() const { return memory_.Fetch(); }

 private:
  static int64_t Floats(const StrideHybridConfig& config, int64_t* memory_at, int64_t* conv_at, int64_t* state_at) {
    int64_t floats = 0;
    const auto section = [&](int64_t* at, int64_t count) {
      *at = floats * 4;
      floats += (count + 15) / 16 * 16;
    };
    const int64_t channels = config.ssm.n_layer * config.d_inner();
    section(memory_at, config.n_ssm_outputs * config.d_model);
    section(conv_at, channels * config.ssm.d_conv);
    section(state_at, channels * config.ssm.d_state);
    return floats;
  }
  static std::vector<float> RandomValues(const StrideHybridConfig& config, int count) {
    int64_t at = 0;
    std::vector<float> values(static_cast<size_t>(count * Floats(config, &at, &at, &at)));
    std::minstd_rand random(7);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& value : values) value = uniform(random);
    return values;
  }

  int64_t memory_at_ = 0, conv_at_ = 0, state_at_ = 0, stride_ = 0;
  const std::vector<float> values_;
  const OnDevice<float> memory_;
};

std::vector<int32_t> RandomIds(const StrideHybridConfig& config, int slots) {
  std::mt19937 random(11);
  std::vector<int32_t> ids(static_cast<size_t>(slots * kRing));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(config.vocab_size));
  return ids;
}

// Of different ones of `sessions`, with windows of all kinds: young ones, full ones, such as do not pool over memory.
std::vector<Write> RandomWrites(const StrideHybridConfig& config, int sessions, int count, uint32_t seed) {
  std::mt19937 random(seed);
  const auto pick = [&](int64_t from, int64_t to) {
    return static_cast<int32_t>(from + static_cast<int64_t>(random() % static_cast<uint64_t>(to - from + 1)));
  };
  std::vector<int32_t> slots(static_cast<size_t>(sessions));
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), random);
  std::vector<Write> writes;
  for (int i = 0; i < count; ++i) {
    const int32_t slot = slots[static_cast<size_t>(i)];
    const auto n = static_cast<int32_t>(config.n_ssm_outputs);
    const int32_t valid = pick(0, 2) == 0 ? pick(0, n) : n;
    writes.push_back(
        {.slot = slot,
         .memory_pooled = pick(0, 3) == 0 ? 0 : valid,
         .memory_valid = valid,
         .tokens = pick(0, 1) == 0 ? pick(1, config.m_input_tokens) : static_cast<int32_t>(config.m_input_tokens),
         .ids_at = slot * kRing,
         .first_id = pick(0, 1 << 20),
         .before = 0});
  }
  return writes;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y); });
}
// What a pass leaves.
struct Left {
  std::vector<float> slots, outputs, pool_weights;
};
void ExpectSameBits(const Left& got, const Left& want, const std::string& where) {
  EXPECT_TRUE(SameBits(got.slots, want.slots)) << "states and memory of " << where;
  EXPECT_TRUE(SameBits(got.outputs, want.outputs)) << "outputs of " << where;
  EXPECT_TRUE(SameBits(got.pool_weights, want.pool_weights)) << "pool weights of " << where;
}
std::string Where(int writes, int blocks) {
  return std::to_string(writes) + " writes on " + std::to_string(blocks) + " multiprocessors";
}
bool IsFinite(const Left& left) {
  return std::all_of(left.slots.begin(), left.slots.end(), [](float x) { return std::isfinite(x); });
}

// One way through the kernels, on sessions of its own.
class Way {
 public:
  static constexpr int kSlots = 36;

  explicit Way(const Model& model)
      : config_(model.config),
        sessions_(config_, kSlots),
        ids_(RandomIds(config_, kSlots)),
        layers_(config_, model.weights.get(), kSlots, stream_.get()),
        writes_(std::vector<Write>(kSlots)),
        scores_(std::vector<float>(static_cast<size_t>(kSlots * config_.window()))),
        pool_weights_(scores_.Fetch()),
        layer_weights_(model.weights->mamba),
        arrived_(std::vector<uint32_t>(1)),
        exchange_(std::vector<std::byte>(FewWritesExchangeBytes(Call(0)))),
        arrivals_{arrived_.get(), 0} {}

  WritePassCall Call(int count) const {
    Pooling pooling = layers_.Pool(writes_.get(), ids_.get(), count, sessions_.slots());
    pooling.ids_mask = kRing - 1;
    WritePassCall call = layers_.AtOnce(pooling);
    call.layers = layer_weights_.get();
    call.scores = scores_.get();
    call.pool_weights = pool_weights_.get();
    return call;
  }
  void BeginAnew() const { sessions_.BeginAnew(); }
  Left RunApart(std::span<const Write> writes) {
    writes_.Put(writes);
    layers_.Run(Call(static_cast<int>(writes.size())).pooling, pool_weights_.get(),
                {MambaConv, MambaScan, MambaStep, SimpleSsm, PushMemory});
    return Fetch(writes.size());
  }
  Left RunAtOnce(std::span<const Write> writes, int blocks) {
    writes_.Put(writes);
    RunWritePass(Call(static_cast<int>(writes.size())), &arrivals_, blocks, stream_.get());
    return Fetch(writes.size());
  }
  // Of the tags from `tag` on, which must not have been used.
  Left RunFew(std::span<const Write> writes, int blocks, uint32_t tag) {
    writes_.Put(writes);
    WritePassCall call = Call(static_cast<int>(writes.size()));
    call.exchange = reinterpret_cast<uint64_t*>(exchange_.get());
    call.tag = tag;
    RunFewWrites(call, &arrivals_, blocks, stream_.get());
    return Fetch(writes.size());
  }

 private:
  Left Fetch(size_t writes) const {
    CheckCuda(cudaStreamSynchronize(stream_.get()), "running writes");
    const auto ld = static_cast<size_t>(layers_.output_stride()), d = static_cast<size_t>(config_.d_model);
    Left left = {sessions_.Fetch(), std::vector<float>(writes * d),
                 pool_weights_.Fetch(writes * static_cast<size_t>(config_.window()))};
    CheckCuda(
        cudaMemcpy2D(left.outputs.data(), d * 4, layers_.outputs(), ld * 4, d * 4, writes, cudaMemcpyDeviceToHost),
        "fetching outputs");
    return left;
  }

  const StrideHybridConfig config_;
  const Stream stream_;
  const Sessions sessions_;
  const OnDevice<int32_t> ids_;
  MemoryLayers layers_;
  const OnDevice<Write> writes_;
  const OnDevice<float> scores_, pool_weights_;
  const OnDevice<MambaWeights> layer_weights_;
  const OnDevice<uint32_t> arrived_;
  const OnDevice<std::byte> exchange_;
  Arrivals arrivals_;
};

class WritesTest : public OnGpu<testing::TestWithParam<std::tuple<StrideHybridConfig (*)(), bool>>> {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (IsSkipped()) return;
    model_ = std::make_unique<Model>(std::get<0>(GetParam())(), std::get<1>(GetParam()));
    apart_ = std::make_unique<Way>(*model_);
    other_ = std::make_unique<Way>(*model_);
    if (!CanRunWritePass(other_->Call(1))) GTEST_SKIP() << "this GPU runs writes in separate kernels alone";
  }
  void BeginAnew() const {
    apart_->BeginAnew();
    other_->BeginAnew();
  }

  static constexpr int kBlocks[] = {0, 100, 64, 48, 44, 32, 20, 7, 3};  // 0: on all multiprocessors
  std::unique_ptr<Model> model_;
  std::unique_ptr<Way> apart_, other_;
};

TEST_P(WritesTest, UpToThirtyTwoInOneKernelGiveTheBitsOfTheSeparateOnes) {
  for (const int count : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32}) {
    const std::vector<Write> writes = RandomWrites(model_->config, Way::kSlots, count, static_cast<uint32_t>(count));
    BeginAnew();
    const Left want = apart_->RunApart(writes);
    ASSERT_TRUE(IsFinite(want));
    for (const int blocks : kBlocks) {
      BeginAnew();
      ExpectSameBits(other_->RunAtOnce(writes, blocks), want, Where(count, blocks));
    }
  }
}

TEST_P(WritesTest, OneOrTwoInOneKernelGiveTheBitsOfTheSeparateOnes) {
  ASSERT_TRUE(CanRunFewWrites(other_->Call(1)));
  uint32_t tag = 1;
  for (const int count : {1, 2, 1}) {
    for (uint32_t seed = 0; seed < 6; ++seed) {
      const std::vector<Write> writes = RandomWrites(model_->config, Way::kSlots, count, seed);
      BeginAnew();
      const Left want = apart_->RunApart(writes);
      ASSERT_TRUE(IsFinite(want));
      for (const int blocks : kBlocks) {
        BeginAnew();
        ExpectSameBits(other_->RunFew(writes, blocks, tag), want, Where(count, blocks));
        tag += static_cast<uint32_t>(model_->config.ssm.n_layer) + 1;
      }
    }
  }
}

TEST_P(WritesTest, TheLastTagsThatThereAreServe) {
  const auto tags = static_cast<uint32_t>(model_->config.ssm.n_layer) + 1;
  for (uint32_t runs = 3; runs > 0; --runs) {  // one after the other in the same sessions
    const std::vector<Write> writes = RandomWrites(model_->config, Way::kSlots, 1 + runs % 2, runs);
    const Left want = apart_->RunApart(writes);
    const uint32_t tag = std::numeric_limits<uint32_t>::max() - runs * tags + 1;
    ExpectSameBits(other_->RunFew(writes, 0, tag), want, "tag " + std::to_string(tag));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, WritesTest, testing::Combine(testing::Values(&Usual, &Narrow), testing::Bool()),
                         [](const auto& tested) {
                           return std::string(std::get<0>(tested.param) == &Usual ? "Usual" : "Narrow") +
                                  (std::get<1>(tested.param) ? "WithShortEmbeddings" : "WithFloatEmbeddings");
                         });

// WritePass: which kernels it takes is nobody's to see.
class WritePassTest : public OnGpu<testing::Test> {
 protected:
  class Way {
   public:
    Way(const Model& model, int slots)
        : sessions_(model.config, slots),
          ids_(RandomIds(model.config, slots)),
          uploads_(stream_.get()),
          pass_(model.config, model.weights.get(), stream_.get(), &uploads_) {
      CheckCuda(cudaDeviceSynchronize(), "clearing device memory");
    }
    void Run(std::span<const Write> writes, int blocks) {
      pass_.Run(writes, IdRings{ids_.get(), kRing, nullptr}, sessions_.slots(), blocks);
    }
    std::vector<float> Fetch() const { return sessions_.Fetch(); }

   private:
    const Stream stream_;
    const Sessions sessions_;
    const OnDevice<int32_t> ids_;
    PinnedUploads uploads_;
    WritePass pass_;
  };
};

TEST_F(WritePassTest, AnyNumberOfWritesOnAnyMultiprocessorsGivesTheBitsOfSeparateKernels) {
  const Model model(Usual(), true);
  constexpr int kSlots = 40, kBlocks[] = {0, 48, 0, 32, 7, 0, 44};
  Way apart(model, kSlots), other(model, kSlots);
  for (int round = 0; round < 200; ++round) {
    const int count = 1 + round * 7 % kSlots;
    const std::vector<Write> writes = RandomWrites(model.config, kSlots, count, static_cast<uint32_t>(round));
    apart.Run(writes, WritePass::kApart);
    other.Run(writes, kBlocks[round % 7]);
    if (round % 10 == 9) {
      ASSERT_TRUE(SameBits(apart.Fetch(), other.Fetch())) << "round " << round;
    }
  }
}

TEST_F(WritePassTest, ManyWritesGiveTheBitsOfAFewAtATime) {
  const Model model(Usual(), true);
  constexpr int kSlots = WritePass::kMaxWrites + 4;
  Way many(model, kSlots), few(model, kSlots);
  uint32_t seed = 0;
  for (const int count : {33, 34, 40, 63, 64, 65, 100, 128, 129, 200, 255, 256}) {
    for (int time = 0; time < 4; ++time) {  // from the third on as a graph
      const std::vector<Write> writes = RandomWrites(model.config, kSlots, count, ++seed);
      many.Run(writes, time % 2 == 0 ? 0 : WritePass::kApart);
      const size_t most = time % 2 == 0 ? kMaxWritePassWrites : 1 + seed % kMaxFewRows;
      for (size_t first = 0; first < writes.size(); first += most) {
        few.Run(std::span(writes).subspan(first, std::min(most, writes.size() - first)), 0);
      }
    }
    ASSERT_TRUE(SameBits(many.Fetch(), few.Fetch())) << count << " writes";
  }
}

// Ranks of any kind, channels that do not fill the last block, and so many that blocks go through their rows twice.
TEST_F(WritePassTest, ManyWritesOfOtherShapesDoSo) {
  constexpr int kSlots = WritePass::kMaxWrites;
  uint32_t seed = 0;
  for (const StrideHybridConfig& config :
       {NewConfig(768, 2, 8), NewConfig(768, 2, 128), NewConfig(1024, 2, 64), NewConfig(72, 3, 6)}) {
    const Model model(config, true);
    Way many(model, kSlots), few(model, kSlots);
    for (const int count : {33, 64, 100, 129, 190, 256}) {
      const std::vector<Write> writes = RandomWrites(config, kSlots, count, ++seed);
      many.Run(writes, WritePass::kApart);
      for (size_t first = 0; first < writes.size(); first += kMaxWritePassWrites) {
        few.Run(std::span(writes).subspan(first, std::min<size_t>(writes.size() - first, kMaxWritePassWrites)), 48);
      }
      ASSERT_TRUE(SameBits(many.Fetch(), few.Fetch())) << count << " writes, d_model " << config.d_model;
    }
  }
}

// It begins not long before the tags do so anew.
TEST_F(WritePassTest, TagsBeginAnewWithoutATrace) {
  const StrideHybridConfig config = Narrow();
  const Model model(config, true);
  constexpr int kSlots = 8;
  Way apart(model, kSlots), other(model, kSlots);
  const int rounds = 0x10000 / static_cast<int>(config.ssm.n_layer + 1) + 100;
  for (int round = 0; round < rounds; ++round) {
    const std::vector<Write> writes = RandomWrites(config, kSlots, 1 + round % 2, static_cast<uint32_t>(round));
    apart.Run(writes, WritePass::kApart);
    other.Run(writes, 0);
    if (round % 100 == 99 || round + 200 > rounds) {
      ASSERT_TRUE(SameBits(apart.Fetch(), other.Fetch())) << "round " << round;
    }
  }
}

}  // namespace
}  // namespace smt::cuda
