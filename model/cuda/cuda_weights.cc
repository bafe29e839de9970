#include "model/cuda/cuda_weights.h"

#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"

namespace smt::cuda {
namespace {

// Rounds to nearest, ties to even; NaN stays one.
uint16_t ToBfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

float ToFloat(uint16_t bfloat16) { return std::bit_cast<float>(static_cast<uint32_t>(bfloat16) << 16); }

// Of a 16-bit type.
uint16_t ToShort(float x, Type type) {
  return type == Type::kFloat16 ? std::bit_cast<uint16_t>(__float2half_rn(x)) : ToBfloat16(x);
}
float Rounded(float x, Type type) {
  if (type == Type::kFloat16) return __half2float(__float2half_rn(x));
  return type == Type::kBfloat16 ? ToFloat(ToBfloat16(x)) : x;
}

// Infinities and NaN are what they are in every type.
absl::Status CheckHolds(const std::string& name, const std::vector<float>& values, Type type) {
  if (type != Type::kFloat16) return absl::OkStatus();
  for (const float x : values) {
    if (std::isfinite(x) && std::isinf(Rounded(x, type))) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " has ", x, ", which float16 cannot hold (up to 65504); bfloat16 and float32 can"));
    }
  }
  return absl::OkStatus();
}

int64_t RoundUp(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

}  // namespace

class CudaWeights::Loader {
 public:
  Loader(const StrideHybridConfig& config, const WeightSource& source, CudaWeights* to)
      : config_(config),
        source_(source),
        to_(*to),
        d_(config.d_model),
        memory_type_(to->window_type == Type::kFloat32 ? Type::kFloat32 : Type::kSplit) {}

  absl::Status Load() {
    RETURN_IF_ERROR(LoadEmbeddings());
    for (int64_t i = 0; i < config_.transformer.n_layer; ++i) {
      const std::string prefix = "transformer.h." + std::to_string(i) + ".";
      ASSIGN_OR_RETURN(BlockWeights block, gpt2() ? Gpt2Block(prefix) : SimpleBlock(prefix));
      to_.blocks.push_back(block);
    }
    ASSIGN_OR_RETURN(to_.norm_f.weight, Vector(gpt2() ? "transformer.ln_f.weight" : "transformer.norm_f.weight", {d_}));
    if (gpt2()) {
      ASSIGN_OR_RETURN(to_.norm_f.bias, Vector("transformer.ln_f.bias", {d_}));
    }
    ASSIGN_OR_RETURN(to_.query, OutIn("pooling.query.weight", d_, d_, memory_type_));
    ASSIGN_OR_RETURN(to_.key_transposed, InOut("pooling.key.weight", d_, d_, memory_type_));
    return config_.ssm.kind == SsmKind::kMamba ? LoadMamba() : LoadSimpleSsm();
  }

 private:
  bool gpt2() const { return config_.transformer.kind == TransformerKind::kGpt2; }

  void* Upload(const void* data, size_t bytes) {
    to_.memory_.emplace_back(bytes);
    to_.bytes += bytes;
    CheckCuda(cudaMemcpy(to_.memory_.back().data(), data, bytes, cudaMemcpyHostToDevice), "uploading weights");
    return to_.memory_.back().data();
  }
  const float* UploadFloats(const std::vector<float>& values) {
    return static_cast<const float*>(Upload(values.data(), values.size() * sizeof(float)));
  }
  absl::StatusOr<const float*> Vector(const std::string& name, const std::vector<int64_t>& shape) {
    ASSIGN_OR_RETURN(const std::vector<float> values, source_(name, shape));
    return UploadFloats(values);
  }

  // Element (output j, input i) is at weight[j * step_out + i * step_in].
  Linear Pack(const std::vector<float>& weight, int64_t n, int64_t k, int64_t step_out, int64_t step_in, Type type) {
    Linear linear;
    linear.type = type;
    linear.n = static_cast<int>(n);
    linear.k = Padded(k);
    linear.plane = RoundUp(n, 64) * linear.k;
    if (type == Type::kFloat32) {
      const int64_t ld = RoundUp(n, 32);
      std::vector<float> packed(static_cast<size_t>(linear.k * ld));
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i < k; ++i) packed[i * ld + j] = weight[j * step_out + i * step_in];
      }
      linear.weight = UploadFloats(packed);
    } else {
      const bool split = type == Type::kSplit;
      std::vector<uint16_t> packed(static_cast<size_t>(linear.plane * (split ? 2 : 1)));
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i < k; ++i) {
          const float value = weight[j * step_out + i * step_in];
          const uint16_t high = ToShort(value, split ? Type::kBfloat16 : type);
          packed[j * linear.k + i] = high;
          if (split) packed[linear.plane + j * linear.k + i] = ToBfloat16(value - ToFloat(high));
        }
      }
      linear.weight = Upload(packed.data(), packed.size() * sizeof(uint16_t));
    }
    return linear;
  }
  // A matrix [out, in].
  absl::StatusOr<Linear> OutIn(const std::string& name, int64_t n, int64_t k, Type type) {
    ASSIGN_OR_RETURN(const std::vector<float> weight, source_(name, {n, k}));
    RETURN_IF_ERROR(CheckHolds(name, weight, type));
    return Pack(weight, n, k, k, 1, type);
  }
  // A matrix [in, out].
  absl::StatusOr<Linear> InOut(const std::string& name, int64_t n, int64_t k, Type type) {
    ASSIGN_OR_RETURN(const std::vector<float> weight, source_(name, {k, n}));
    RETURN_IF_ERROR(CheckHolds(name, weight, type));
    return Pack(weight, n, k, 1, n, type);
  }

  absl::Status LoadEmbeddings() {
    ASSIGN_OR_RETURN(const std::vector<float> table, source_("transformer.wte.weight", {config_.vocab_size, d_}));
    RETURN_IF_ERROR(CheckHolds("transformer.wte.weight", table, to_.window_type));
    const bool exact =
        std::all_of(table.begin(), table.end(), [](float x) { return (std::bit_cast<uint32_t>(x) & 0xffff) == 0; });
    to_.embedding_type = exact ? Type::kBfloat16 : Type::kFloat32;
    if (config_.tie_word_embeddings) {
      to_.head = Pack(table, config_.vocab_size, d_, d_, 1, to_.window_type);
    } else {
      ASSIGN_OR_RETURN(to_.head, OutIn("lm_head.weight", config_.vocab_size, d_, to_.window_type));
    }
    if (exact && config_.tie_word_embeddings && to_.window_type == Type::kBfloat16) {
      to_.embeddings = to_.head.weight;
      to_.ld_embeddings = to_.head.k;
    } else if (exact) {
      std::vector<uint16_t> rows(table.size());
      std::transform(table.begin(), table.end(), rows.begin(), ToBfloat16);
      to_.embeddings = Upload(rows.data(), rows.size() * sizeof(uint16_t));
      to_.ld_embeddings = d_;
    } else {
      to_.embeddings = UploadFloats(table);
      to_.ld_embeddings = d_;
    }
    ASSIGN_OR_RETURN(std::vector<float> positions,
                     source_("transformer.wpe.weight", {config_.transformer.n_positions, d_}));
    positions.resize(static_cast<size_t>(config_.window() * d_));
    RETURN_IF_ERROR(CheckHolds("transformer.wpe.weight", positions, to_.window_type));
    for (float& x : positions) x = Rounded(x, to_.window_type);
    to_.positions = UploadFloats(positions);
    return absl::OkStatus();
  }

  absl::StatusOr<BlockWeights> Gpt2Block(const std::string& prefix) {
    const auto linear = [&](const std::string& name, int64_t k, int64_t n) -> absl::StatusOr<Linear> {
      ASSIGN_OR_RETURN(Linear result, InOut(prefix + name + ".weight", n, k, to_.window_type));
      ASSIGN_OR_RETURN(result.bias, Vector(prefix + name + ".bias", {n}));
      return result;
    };
    const int64_t inner = config_.mlp_width();
    BlockWeights block;
    ASSIGN_OR_RETURN(block.norm_1.weight, Vector(prefix + "ln_1.weight", {d_}));
    ASSIGN_OR_RETURN(block.norm_1.bias, Vector(prefix + "ln_1.bias", {d_}));
    ASSIGN_OR_RETURN(block.norm_2.weight, Vector(prefix + "ln_2.weight", {d_}));
    ASSIGN_OR_RETURN(block.norm_2.bias, Vector(prefix + "ln_2.bias", {d_}));
    ASSIGN_OR_RETURN(block.qkv, linear("attn.c_attn", d_, 3 * d_));
    ASSIGN_OR_RETURN(block.proj, linear("attn.c_proj", d_, d_));
    ASSIGN_OR_RETURN(block.fc, linear("mlp.c_fc", d_, inner));
    ASSIGN_OR_RETURN(block.mlp_proj, linear("mlp.c_proj", inner, d_));
    return block;
  }

  absl::StatusOr<BlockWeights> SimpleBlock(const std::string& prefix) {
    std::vector<float> qkv;  // [3 D, D]
    for (const char* part : {"query", "key", "value"}) {
      const std::string name = prefix + "attn." + part + ".weight";
      ASSIGN_OR_RETURN(const std::vector<float> weight, source_(name, {d_, d_}));
      RETURN_IF_ERROR(CheckHolds(name, weight, to_.window_type));
      qkv.insert(qkv.end(), weight.begin(), weight.end());
    }
    const int64_t inner = config_.mlp_width();
    BlockWeights block;
    ASSIGN_OR_RETURN(block.norm_1.weight, Vector(prefix + "norm.weight", {d_}));
    block.norm_2 = block.norm_1;
    block.qkv = Pack(qkv, 3 * d_, d_, d_, 1, to_.window_type);
    ASSIGN_OR_RETURN(block.proj, OutIn(prefix + "attn.out.weight", d_, d_, to_.window_type));
    ASSIGN_OR_RETURN(block.fc, OutIn(prefix + "mlp.up.weight", inner, d_, to_.window_type));
    ASSIGN_OR_RETURN(block.mlp_proj, OutIn(prefix + "mlp.down.weight", d_, inner, to_.window_type));
    return block;
  }

  absl::Status LoadMamba() {
    const int64_t inner = config_.d_inner(), states = config_.ssm.d_state, rank = config_.dt_rank();
    for (int64_t i = 0; i < config_.ssm.n_layer; ++i) {
      const std::string at = "ssm.backbone.layers." + std::to_string(i) + ".", mixer = at + "mixer.";
      MambaWeights layer;
      ASSIGN_OR_RETURN(layer.norm, Vector(at + "norm.weight", {d_}));
      ASSIGN_OR_RETURN(layer.in_proj, OutIn(mixer + "in_proj.weight", 2 * inner, d_, memory_type_));
      ASSIGN_OR_RETURN(layer.conv_weight, Vector(mixer + "conv1d.weight", {inner, 1, config_.ssm.d_conv}));
      ASSIGN_OR_RETURN(layer.conv_bias, Vector(mixer + "conv1d.bias", {inner}));
      ASSIGN_OR_RETURN(layer.x_proj, OutIn(mixer + "x_proj.weight", rank + 2 * states, inner, memory_type_));
      ASSIGN_OR_RETURN(layer.dt_proj, OutIn(mixer + "dt_proj.weight", inner, rank, memory_type_));
      ASSIGN_OR_RETURN(layer.dt_proj.bias, Vector(mixer + "dt_proj.bias", {inner}));
      ASSIGN_OR_RETURN(std::vector<float> a, source_(mixer + "A_log", {inner, states}));
      for (float& x : a) x = -static_cast<float>(std::exp(static_cast<double>(x)));
      layer.a = UploadFloats(a);
      ASSIGN_OR_RETURN(layer.skip, Vector(mixer + "D", {inner}));
      ASSIGN_OR_RETURN(layer.out_proj, OutIn(mixer + "out_proj.weight", d_, inner, memory_type_));
      to_.mamba.push_back(layer);
    }
    ASSIGN_OR_RETURN(to_.ssm_norm, Vector("ssm.backbone.norm_f.weight", {d_}));
    return absl::OkStatus();
  }

  absl::Status LoadSimpleSsm() {
    for (int64_t i = 0; i < config_.ssm.n_layer; ++i) {
      const std::string at = "ssm.layers." + std::to_string(i) + ".";
      SimpleSsmWeights layer;
      ASSIGN_OR_RETURN(layer.in_proj, OutIn(at + "in_proj.weight", d_, d_, memory_type_));
      ASSIGN_OR_RETURN(layer.out_proj, OutIn(at + "out_proj.weight", d_, d_, memory_type_));
      ASSIGN_OR_RETURN(std::vector<float> decay, source_(at + "decay", {d_}));
      for (float& x : decay) x = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x))));
      layer.decay = UploadFloats(decay);
      ASSIGN_OR_RETURN(layer.skip, Vector(at + "skip", {d_}));
      to_.simple.push_back(layer);
    }
    return absl::OkStatus();
  }

  const StrideHybridConfig& config_;
  const WeightSource& source_;
  CudaWeights& to_;
  const int64_t d_;
  const Type memory_type_;
};

absl::StatusOr<std::unique_ptr<CudaWeights>> CudaWeights::Load(const StrideHybridConfig& config,
                                                               const WeightSource& source, Type window_type) {
  auto weights = std::make_unique<CudaWeights>();
  weights->window_type = window_type;
  RETURN_IF_ERROR(Loader(config, source, weights.get()).Load());
  return weights;
}

}  // namespace smt::cuda
