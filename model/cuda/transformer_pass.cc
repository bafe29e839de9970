#include "model/cuda/transformer_pass.h"

#include <cstring>
#include <limits>
#include <utility>

namespace smt::cuda {
namespace {

// What a product leaves for the norm after it.
struct Left {
  Addends addends;
  const float* bias = nullptr;
};

constexpr int kMaxGraphRows = 512;  // above, the device is busy for longer than launching takes

}  // namespace

TransformerPass::TransformerPass(const StrideHybridConfig& config, const CudaWeights* weights, int slots,
                                 cudaStream_t stream)
    : weights_(*weights),
      d_(static_cast<int>(config.d_model)),
      n_(static_cast<int>(config.n_ssm_outputs)),
      heads_(static_cast<int>(config.transformer.n_head)),
      inner_(static_cast<int>(config.mlp_width())),
      vocab_(static_cast<int>(config.vocab_size)),
      ld_(Padded(d_)),
      epsilon_(static_cast<float>(config.transformer.layer_norm_epsilon)),
      activation_(config.transformer.kind == TransformerKind::kGpt2 ? Activation::kGelu : Activation::kRelu),
      stream_(stream),
      ld_qkv_(Padded(3 * static_cast<int64_t>(d_))),
      ld_inner_(Padded(inner_)),
      ld_logits_((vocab_ + 3) / 4 * 4),
      uploads_(stream),
      graphs_(stream) {
  const Type type = weights->window_type;
  const size_t size = SizeOf(type), rows = kMaxRows;
  cache_.type = type;
  cache_.window = static_cast<int>(config.window());
  cache_.d = d_;
  cache_.layer_stride = 2 * static_cast<int64_t>(cache_.window) * d_;
  cache_.slot_stride = (config.transformer.n_layer * cache_.layer_stride + 7) / 8 * 8;
  cache_memory_ = DeviceMemory(static_cast<size_t>(slots) * static_cast<size_t>(cache_bytes_per_slot()));
  cache_.base = cache_memory_.data();
  outputs_ = DeviceMemory(static_cast<size_t>(slots) * static_cast<size_t>(output_bytes_per_slot()));
  by_groups_ = CanAttendGroups(cache_, heads_);
  at_once_ = CanRunWindowPass(cache_, heads_, inner_, static_cast<int>(config.transformer.n_layer));
  if (at_once_) {
    blocks_ = DeviceMemory(weights->blocks.size() * sizeof(BlockWeights));
    CheckCuda(cudaMemcpy(blocks_.data(), weights->blocks.data(), blocks_.bytes(), cudaMemcpyHostToDevice),
              "uploading the layers");
    arrived_ = DeviceMemory(sizeof(uint32_t));
    arrivals_ = {arrived_.as<uint32_t>(), 0};
    if (CanRunAlone(Multiprocessors())) exchange_ = DeviceMemory(RowPassExchangeBytes(d_, inner_));
  }
  tickets_ = DeviceMemory(sizeof(uint32_t));
  if (IsShort(type) && CanLeaveAddends() && CanFinishRows(d_)) addends_ = DeviceMemory(kAddendRoomBytes);
  plan_ = DeviceMemory(rows * (sizeof(Row) + sizeof(Group) + 2 * sizeof(int32_t)));
  x_ = DeviceMemory(rows * static_cast<size_t>(ld_) * sizeof(float));
  x_wanted_ = DeviceMemory(x_.bytes());
  normed_ = DeviceMemory(rows * static_cast<size_t>(ld_) * size);
  attended_ = DeviceMemory(normed_.bytes());
  qkv_ = DeviceMemory(rows * static_cast<size_t>(ld_qkv_) * size);
  inner_rows_ = DeviceMemory(rows * static_cast<size_t>(ld_inner_) * size);
  head_rows_ = DeviceMemory(size_t{kMaxHeadRows} * static_cast<size_t>(ld_) * size);
  logits_ = DeviceMemory(size_t{kMaxHeadRows} * static_cast<size_t>(ld_logits_) * sizeof(float));
}

template <typename T>
const T* TransformerPass::Pack(std::span<const T> values, size_t* at) {
  const size_t from = *at;
  *at += values.size_bytes();
  if (host_plan_.size() < *at) host_plan_.resize(*at);
  std::memcpy(host_plan_.data() + from, values.data(), values.size_bytes());
  return reinterpret_cast<const T*>(plan_.as<std::byte>() + from);
}

void TransformerPass::Run(std::span<const Row> rows, std::span<const Group> groups, std::span<const int32_t> wanted,
                          std::span<const int32_t> to_slots, bool keep_tokens, const SlotMemory& slots,
                          const IdRings& rings, int spare) {
  // One copy. Where the parts lie depends on their lengths alone, so a graph finds them again.
  size_t bytes = 0;
  rows_ = Pack(rows, &bytes);
  groups_ = Pack(groups, &bytes);
  wanted_ = Pack(wanted, &bytes);
  to_slots_ = Pack(to_slots, &bytes);
  uploads_.Copy(plan_.data(), host_plan_.data(), bytes);
  const auto count = static_cast<int>(rows.size()), last = static_cast<int>(wanted.size());
  few_ = 0;
  while (few_ < last && groups[static_cast<size_t>(few_)].rows <= kFewGroupRows) ++few_;
  if (at_once_ && count <= kMaxWindowPassRows) return RunAtOnce(count, last, keep_tokens, slots, rings, spare);
  const auto queue = [&] { Queue(count, last, keep_tokens, slots, rings, spare); };
  if (count > kMaxGraphRows) return queue();
  // All that a graph's launches depend on.
  uint64_t shape = 0;
  for (const int part : {count, last, few_}) shape = shape * (kMaxRows + 1) + static_cast<uint64_t>(part);
  graphs_.Run((shape * 1024 + static_cast<uint64_t>(spare)) * 2 + (keep_tokens ? 1 : 0), queue);
}

void TransformerPass::RunAtOnce(int count, int groups, bool keep_tokens, const SlotMemory& slots, const IdRings& rings,
                                int spare) {
  const WindowPass pass = {.blocks = blocks_.as<BlockWeights>(),
                           .layers = static_cast<int>(weights_.blocks.size()),
                           .norm_f = weights_.norm_f,
                           .epsilon = epsilon_,
                           .activation = activation_,
                           .embedding_type = weights_.embedding_type,
                           .embeddings = weights_.embeddings,
                           .ld_embeddings = weights_.ld_embeddings,
                           .positions = weights_.positions,
                           .rows = rows_,
                           .groups = groups_,
                           .to_slots = to_slots_,
                           .row_count = count,
                           .group_count = groups,
                           .slots = slots,
                           .rings = rings,
                           .cache = cache_,
                           .keep_tokens = keep_tokens,
                           .heads = heads_,
                           .n = n_,
                           .scale = GroupScale(d_ / heads_),
                           .x = x_.as<float>(),
                           .x_wanted = x_wanted_.as<float>(),
                           .normed = normed_.data(),
                           .qkv = qkv_.data(),
                           .attended = attended_.data(),
                           .inner = inner_rows_.data(),
                           .outputs = outputs_.data(),
                           .ld = ld_,
                           .ld_qkv = ld_qkv_,
                           .ld_inner = ld_inner_,
                           .work_bytes = 0,
                           .ring_bytes = 0,
                           .exchange = exchange_.as<uint64_t>(),
                           .tag = 0};
  const int blocks = Multiprocessors() - spare;
  if (count == 1 && CanRunAlone(blocks)) return RunAlone(pass, blocks);
  RunWindowPass(pass, &arrivals_, spare, stream_);
}

bool TransformerPass::CanRunAlone(int blocks) const {
  return CanRunRowPass(cache_, heads_, inner_, static_cast<int>(weights_.blocks.size()), blocks);
}

void TransformerPass::RunAlone(WindowPass pass, int blocks) {
  const auto tags = static_cast<uint32_t>(pass.layers);
  if (next_tag_ > std::numeric_limits<uint32_t>::max() - tags) {
    CheckCuda(cudaMemsetAsync(exchange_.data(), 0, exchange_.bytes(), stream_), "clearing tags");
    next_tag_ = 1;
  }
  pass.tag = next_tag_;
  next_tag_ += tags;
  RunRowPass(pass, &arrivals_, blocks, stream_);
}

void TransformerPass::Queue(int count, int wanted, bool keep_tokens, const SlotMemory& slots, const IdRings& rings,
                            int spare) {
  const Type type = weights_.window_type;
  float* x = x_.as<float>();
  EmbedRows(type, weights_.embedding_type, rows_, count, slots, rings, weights_.embeddings, weights_.ld_embeddings,
            weights_.positions, d_, x, ld_, stream_);
  const auto call = [&](const DeviceMemory& in, int64_t ldx, void* y, int64_t ldy, const float* residual,
                        Activation activation) -> LinearCall {
    return {.x = in.data(),
            .ldx = ldx,
            .rows = count,
            .y = y,
            .ldy = ldy,
            .float_output = residual != nullptr,
            .residual = residual,
            .activation = activation,
            .scratch = nullptr,
            .spare = spare,
            .tickets = tickets_.as<uint32_t>()};
  };
  const auto product = [&](const Linear& linear, const DeviceMemory& in, int64_t ldx, const DeviceMemory& y,
                           int64_t ldy, Activation activation) {
    RunLinear(linear, call(in, ldx, y.data(), ldy, nullptr, activation), stream_);
  };
  // Adds a product to x, or leaves it to the norm that comes next.
  const auto add = [&](const Linear& linear, const DeviceMemory& in, int64_t ldx, Left* left) {
    const LinearCall adding = call(in, ldx, x, ld_, x, Activation::kNone);
    if (addends_.bytes() == 0) return RunLinear(linear, adding, stream_);
    const AddendRoom room = {addends_.as<float>(), static_cast<int64_t>(addends_.bytes() / sizeof(float))};
    *left = {RunLinearApart(linear, adding, room, stream_), linear.bias};
  };
  const auto norm = [&](const Norm& by, Left* left, const int32_t* to_rows, const DeviceMemory& y) {
    if (left->addends.count > 0) {
      FinishAndNormalize(type, left->addends, left->bias, x, ld_, to_rows, count, d_, by, epsilon_, y.data(), ld_,
                         stream_);
    } else {
      Normalize(type, x, ld_, to_rows, count, d_, by.weight, by.bias, epsilon_, y.data(), ld_, stream_);
    }
    *left = {};
  };
  const size_t layers = weights_.blocks.size();
  Left left;
  for (size_t l = 0; l < layers; ++l) {
    const BlockWeights& block = weights_.blocks[l];
    const int layer = static_cast<int>(l);
    norm(block.norm_1, &left, nullptr, normed_);
    product(block.qkv, normed_, ld_, qkv_, ld_qkv_, Activation::kNone);
    if (!by_groups_) StoreKeysValues(cache_, layer, rows_, count, qkv_.data(), ld_qkv_, stream_);
    const int32_t* order = nullptr;
    if (l + 1 == layers && wanted < count) {
      // The last layer's keys and values are all that later columns need of the other rows.
      order = wanted_;
      count = wanted;
      GatherRows(Type::kFloat32, x, ld_, order, count, x_wanted_.data(), stream_);
      x = x_wanted_.as<float>();
    }
    if (by_groups_) {
      AttendGroups(cache_, layer, groups_, wanted, few_, qkv_.data(), ld_qkv_, heads_, n_, keep_tokens,
                   order != nullptr, attended_.data(), ld_, stream_);
    } else {
      Attend(cache_, layer, rows_, order, count, qkv_.data(), ld_qkv_, heads_, n_, attended_.data(), ld_, stream_);
    }
    add(block.proj, attended_, ld_, &left);
    norm(block.norm_2, &left, nullptr, normed_);
    product(block.fc, normed_, ld_, inner_rows_, ld_inner_, activation_);
    add(block.mlp_proj, inner_rows_, ld_inner_, &left);
  }
  norm(weights_.norm_f, &left, to_slots_, outputs_);
}

float* TransformerPass::Head(const int32_t* slots, int count, int spare, int only) {
  const void* rows = head_rows_.data();
  if (count == 1 && only >= 0) {
    rows = outputs_.as<std::byte>() + only * output_bytes_per_slot();
  } else {
    GatherRows(weights_.window_type, outputs_.data(), ld_, slots, count, head_rows_.data(), stream_);
  }
  RunLinear(weights_.head,
            {.x = rows,
             .ldx = ld_,
             .rows = count,
             .y = logits_.data(),
             .ldy = ld_logits_,
             .float_output = true,
             .residual = nullptr,
             .activation = Activation::kNone,
             .scratch = nullptr,
             .spare = spare,
             .tickets = tickets_.as<uint32_t>()},
            stream_);
  return logits_.as<float>();
}

}  // namespace smt::cuda
