// Launchers of the CUDA kernels. Plain pointers into device memory; everything is queued on `stream` and nothing waits.
// A launch error is thrown as std::runtime_error (CheckCuda).
//
// Every kernel is batch-invariant: a row's bits depend on that row's inputs alone, never on how many rows ride with it.
// Matrix products keep one summation order for every batch size: the inner dimension is cut into a fixed number of
// pieces, each summed in order of k, and the pieces are added in order. A few rows give each piece to a warp of its
// own, many rows take the pieces one after the other.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace smt::cuda {

inline constexpr int kChunks = 8;  // pieces of a product of 16-bit or split numbers; float32 has 32
inline constexpr int kPad = 128;   // inner dimensions are padded with zeros to a multiple of this

inline constexpr int Padded(int64_t k) { return static_cast<int>((k + kPad - 1) / kPad * kPad); }

void CheckCuda(cudaError_t error, const char* what);

// `bytes` > 0 of the host's memory, which may be reused at once, to `to` in device memory, on 16 bytes.
inline constexpr size_t kMostStoredBytes = 2048;
void StoreBytes(void* to, const void* from, size_t bytes, cudaStream_t stream);

// kSplit, of weights only: float32 as the sum of two bfloat16, 2^-17 from it, for rows of float32.
enum class Type { kFloat32, kBfloat16, kFloat16, kSplit };
inline constexpr bool IsShort(Type type) { return type == Type::kBfloat16 || type == Type::kFloat16; }
inline constexpr int SizeOf(Type type) { return IsShort(type) ? 2 : 4; }

enum class Activation { kNone, kGelu, kRelu, kSoftplus };

// y[r, j] = act(sum_k x[r, k] w[j, k] + bias[j]) + residual[r, j]
struct Linear {
  Type type = Type::kFloat32;  // of the weights and of x; sums are float32
  // bfloat16, float16: [ceil64(n), Padded(k)]; split: two such planes; float32: [Padded(k), ceil32(n)] (k-major)
  const void* weight = nullptr;
  const float* bias = nullptr;  // or null
  int n = 0, k = 0;             // outputs; Padded inputs
  int64_t plane = 0;            // split: elements from the high to the low plane
};
// float32 rows as the sum of two bfloat16, as products of many rows with split weights want them: [rows, ld] twice,
// `plane` elements apart. Null: not there.
struct SplitRows {
  __nv_bfloat16* high = nullptr;
  int64_t plane = 0;
};
inline constexpr int kMaxFewRows = 32;  // products of up to so many rows split them on their way
struct LinearCall {
  const void* x;  // [rows, ldx] of the weights' type; columns from k on are zero
  int64_t ldx;
  int rows;
  void* y;  // [rows, ldy]; what pads a row may be overwritten
  int64_t ldy;
  bool float_output;      // else of the weights' type
  const float* residual;  // [rows, ldy] or null; may be y
  Activation activation;
  void* scratch;  // split: room for rows x Padded(k) float32
  int spare = 0;  // multiprocessors that are better left to others
  // A counter in device memory, zero at first, of calls on one stream: by it blocks share many tiles as they come.
  uint32_t* tickets = nullptr;
  // If there, rows come from here, and neither x nor scratch is used.
  SplitRows split = {};
};
void RunLinear(const Linear& linear, const LinearCall& call, cudaStream_t stream);

struct Norm {
  const float* weight = nullptr;
  const float* bias = nullptr;  // null: RMSNorm
};

// What is left of a product for its reader to add up, in order: [count][rows, ld]; then come bias and residual.
struct Addends {
  const float* at = nullptr;
  int64_t stride = 0, ld = 0;  // elements from an addend to the next; of a row
  int count = 0;               // 0: nothing is left, the product is complete
};
inline constexpr int kMaxAddends = kChunks;
// Memory that is free until the reader is done. A product that might need more is done whole.
struct AddendRoom {
  float* at;
  int64_t floats;
};
inline constexpr int64_t kAddendRoomBytes = 16 << 20;  // eight addends of 512 rows of 1,024 outputs
// RunLinear, or, where few tiles would leave the device idle, addends with rows as long as y's in `room`, and neither
// y, bias nor residual is touched. Split rows have to be split already. The second happens where CanLeaveAddends, on
// compute capability 9.0.
bool CanLeaveAddends();
Addends RunLinearApart(const Linear& linear, const LinearCall& call, const AddendRoom& room, cudaStream_t stream);
// y[:rows, :n] = the sums, for readers that would add them up many times over. n is rounded up to a multiple of 4.
void SumAddends(const Addends& addends, int rows, int n, float* y, int64_t ldy, cudaStream_t stream);

struct BlockWeights {
  Norm norm_1, norm_2;
  Linear qkv, proj, fc, mlp_proj;
};

// A row of the window on its way through the transformer.
struct Row {
  int32_t slot;
  int32_t column;        // window position
  int32_t memory_valid;  // of its session
  int32_t source;        // >= 0: token id; from -1 down to -n: memory row -1 - source; else IdSource(ring index)
};
// Each slot has a ring of its latest ids on the device, position t (1-based) at (t - 1) % size, for ids that were drawn
// there and that the host does not know yet.
inline constexpr int32_t kIdSources = 1 << 30;
inline constexpr int32_t IdSource(int32_t index) { return -kIdSources - index; }
struct IdRings {
  int32_t* ids;   // [slots, size]
  int32_t size;   // a power of two
  int32_t* last;  // [slots]: drawn last
};
struct Append {
  int32_t slot, index;  // in its ring
  int32_t id;           // >= 0, or -1: the one drawn last
};
void AppendIds(const Append* appends, int count, const IdRings& rings, cudaStream_t stream);

struct SlotMemory {  // per-session state in device memory
  std::byte* base;   // [slots, stride] bytes, laid out as model/state_layout.h
  int64_t stride;
  int64_t memory_at, conv_at, state_at;  // bytes
};

// x[r, :d] = (memory vector or embedding) + position, float32. Beside a `type` of 16 bits the first is rounded to it.
void EmbedRows(Type type, Type embedding_type, const Row* rows, int count, const SlotMemory& slots,
               const IdRings& rings, const void* embeddings, int64_t ld_embeddings, const float* positions, int d,
               float* x, int64_t ldx, cudaStream_t stream);
// LayerNorm, or RMSNorm where bias is null. y[to_rows[i]] = norm(x[i]), or y[i] where to_rows is null. Rows of x and y
// begin on 16 bytes.
void Normalize(Type out_type, const float* x, int64_t ldx, const int32_t* to_rows, int rows, int d, const float* weight,
               const float* bias, float epsilon, void* y, int64_t ldy, cudaStream_t stream);
// Norms that first finish a product: x = (addends + bias) + x, then y as above. `d` as CanFinishRows says.
inline bool CanFinishRows(int d) { return d % 4 == 0 && d <= 1024; }
void FinishAndNormalize(Type out_type, const Addends& addends, const float* bias, float* x, int64_t ldx,
                        const int32_t* to_rows, int rows, int d, const Norm& norm, float epsilon, void* y, int64_t ldy,
                        cudaStream_t stream);
void FinishAndNormalizeSplit(const Addends& addends, float* x, int64_t ldx, int rows, int d, const float* weight,
                             float epsilon, const SplitRows& y, int64_t ldy, cudaStream_t stream);
// RMSNorm of every row, split.
void NormalizeSplit(const float* x, int64_t ldx, int rows, int d, const float* weight, float epsilon,
                    const SplitRows& y, int64_t ldy, cudaStream_t stream);
// to[i] = from[order[i]], rows of ld elements.
void GatherRows(Type type, const void* from, int64_t ld, const int32_t* order, int count, void* to,
                cudaStream_t stream);

struct Cache {  // keys and values: [slots][layers][2][window][d] of `type`
  Type type;
  void* base;
  int64_t slot_stride, layer_stride;  // elements
  int window, d;
};
void StoreKeysValues(const Cache& cache, int layer, const Row* rows, int count, const void* qkv, int64_t ld,
                     cudaStream_t stream);
// Causal attention of each row over its session's cached columns. `order`, if not null, picks rows: output i is row
// order[i].
void Attend(const Cache& cache, int layer, const Row* rows, const int32_t* order, int count, const void* qkv,
            int64_t ld, int heads, int n, void* out, int64_t ld_out, cudaStream_t stream);

// A session's rows in a pass, neighbours in order of their columns, the last being its window's last. Its keys are
// counted memory first, then tokens, without the gap that unused memory leaves between their columns.
struct Group {
  int32_t slot;
  int32_t first_row, rows;
  int32_t first_key;     // of its first row; keys before it are in the cache
  int32_t memory_valid;  // of its keys
};
inline constexpr int kMaxGroupKeys = 80;
// Of scores whose softmax is of powers of two: log2(e) / sqrt(width).
inline float GroupScale(int width) { return 1.4426950408889634f / std::sqrt(static_cast<float>(width)); }
// Whether AttendGroups serves this shape; then it takes the place of StoreKeysValues and Attend, always.
bool CanAttendGroups(const Cache& cache, int heads);
// Causal attention of each group's rows over its session's keys. The groups' own keys and values go into the cache,
// those of tokens if keep_tokens. only_last: of each group's last row only, out[i] being group i's. The first `few`
// groups have kFewGroupRows rows at most.
inline constexpr int kFewGroupRows = 16;
void AttendGroups(const Cache& cache, int layer, const Group* groups, int count, int few, const void* qkv, int64_t ld,
                  int heads, int n, bool keep_tokens, bool only_last, void* out, int64_t ld_out, cudaStream_t stream);

// One write: what its window holds.
struct Write {
  int32_t slot;
  int32_t memory_pooled;  // memory rows pooled over
  int32_t memory_valid;   // before the write
  int32_t tokens;         // token rows; row i's id is ids[ids_at + ((first_id + i) & ids_mask)] of Pooling
  int32_t ids_at, first_id;
  int32_t before;  // writes of the same session right before it in the pass
};
struct Sequence;  // model/cuda/sequence.h
struct Pooling {
  const Write* writes;
  const int32_t* ids;
  int32_t ids_mask = 0x7fffffff;  // of a list; of rings, their size less one
  int count, m, n, d;             // count: writes, each a row
  SlotMemory slots;
  Type embedding_type;
  const void* embeddings;
  int64_t ld_embeddings;
  // Of a pass in which sessions write more than once; else each write is of another session.
  const Sequence* sequences = nullptr;
  int sequence_count = 0;
};
void PoolMean(const Pooling& pooling, float* mean, int64_t ld, cudaStream_t stream);
// weights[w, n + m] (zero where unused) = softmax of the rows' products with key[w], which are left in scores[w, n +
// m]; pooled = the weighted sum. weights may be null: not wanted.
void PoolAttend(const Pooling& pooling, const float* key, int64_t ld_key, float* scores, float* weights, float* pooled,
                int64_t ld, cudaStream_t stream);
void PushMemory(const Pooling& pooling, const float* output, int64_t ld, cudaStream_t stream);

struct MambaShape {
  int d_inner, d_state, d_conv, dt_rank;
};
// `split`: the same values once more.
void MambaConv(const Pooling& writes, const MambaShape& shape, int layer, const float* xz, int64_t ld_xz,
               const float* weight, const float* bias, float* y, int64_t ld, const SplitRows& split,
               cudaStream_t stream);
// Into y, or into `split` where that is there.
void MambaScan(const Pooling& writes, const MambaShape& shape, int layer, const float* x, int64_t ld_x, const float* dt,
               int64_t ld_dt, const float* parameters, int64_t ld_parameters, const float* a, const float* skip,
               const float* xz, int64_t ld_xz, float* y, int64_t ld, const SplitRows& split, cudaStream_t stream);
// MambaConv that first finishes in_proj, whose outputs are xz: its second half, the gates, too.
bool CanFinishConv(const MambaShape& shape);
void FinishAndConvolve(const Pooling& writes, const MambaShape& shape, int layer, const Addends& addends, float* xz,
                       int64_t ld_xz, const float* weight, const float* bias, float* y, int64_t ld,
                       const SplitRows& split, cudaStream_t stream);
// dt_proj, softplus and MambaScan in one kernel, into y. `parameters`: a row's are dt's, then B and C; or what
// `addends`, where there are any, add up to.
bool CanRunMambaStep(const Linear& dt_proj, const MambaShape& shape);
void MambaStep(const Pooling& writes, const MambaShape& shape, int layer, const Linear& dt_proj, const float* x,
               int64_t ld_x, const float* parameters, int64_t ld_parameters, const Addends& addends, const float* a,
               const float* skip, const float* xz, int64_t ld_xz, const SplitRows& y, int64_t ld, cudaStream_t stream);
// The simple SSM's step before its output product: h = decay h + u, hidden = h, x = x + skip x.
void SimpleSsm(const Pooling& writes, int layer, const float* decay, const float* skip, float* x, int64_t ld_x,
               const float* u, int64_t ld_u, float* hidden, int64_t ld_hidden, cudaStream_t stream);

struct MambaWeights {
  const float* norm = nullptr;
  Linear in_proj, x_proj, dt_proj, out_proj;
  const float *conv_weight = nullptr, *conv_bias = nullptr, *a = nullptr, *skip = nullptr;
};

// A pass of few rows through the whole transformer, or of few writes through pooling and Mamba, as one cooperative
// kernel whose blocks wait for each other between the layers' parts: a kernel for each part would take longer to start
// and to drain than to run. The bits are those of the separate kernels. Compute capability 9.0 and up.
struct Arrivals {   // of blocks; the kernels of one stream share it
  uint32_t* count;  // in device memory, zero at first
  uint32_t base;    // what `count` holds before this kernel; the launchers advance it
};
struct WindowPass {
  const BlockWeights* blocks;  // [layers] in device memory; of the cache's type
  int layers;
  Norm norm_f;
  float epsilon;
  Activation activation;
  Type embedding_type;
  const void* embeddings;
  int64_t ld_embeddings;
  const float* positions;
  const Row* rows;
  const Group* groups;
  const int32_t* to_slots;  // of the groups' outputs
  int row_count, group_count;
  SlotMemory slots;
  IdRings rings;
  Cache cache;
  bool keep_tokens;
  int heads, n;
  float scale;                                      // GroupScale
  float *x, *x_wanted;                              // [rows, ld]
  void *normed, *qkv, *attended, *inner, *outputs;  // of the cache's type
  int64_t ld, ld_qkv, ld_inner;
  size_t work_bytes, ring_bytes;  // the launcher's
  // Of RunRowPass: what blocks hand to each other, zero at first, and the first of `layers` tags that are not zero and
  // were not used with it before.
  uint64_t* exchange;
  uint32_t tag;
};
inline constexpr int kMaxWindowPassRows = 32;
bool CanRunWindowPass(const Cache& cache, int heads, int inner, int layers);
// `spare` multiprocessors are left to others.
void RunWindowPass(const WindowPass& pass, Arrivals* arrivals, int spare, cudaStream_t stream);
// The same of one row, to the same bits, by blocks that hand numbers to each other without barriers. On `blocks`
// multiprocessors.
bool CanRunRowPass(const Cache& cache, int heads, int inner, int layers, int blocks);
size_t RowPassExchangeBytes(int d, int inner);
void RunRowPass(const WindowPass& pass, Arrivals* arrivals, int blocks, cudaStream_t stream);

struct WritePassCall {
  Pooling pooling;
  Linear query, key_transposed;
  const MambaWeights* layers;  // [layer_count] in device memory; split
  int layer_count;
  const float* norm_f;
  float epsilon;
  MambaShape shape;
  float *x, *normed, *query_rows, *key_rows;     // [writes, ld]
  float *scores, *pool_weights;                  // [writes, n + m]
  float *xz, *convolved, *scanned, *parameters;  // [writes, ld_...]
  int64_t ld, ld_xz, ld_inner, ld_parameters;
  size_t work_bytes, ring_bytes;  // the launcher's
  // Of RunFewWrites: what blocks hand to each other, zero at first, and the first of layer_count + 1 tags that are not
  // zero and were not used with it before.
  uint64_t* exchange;
  uint32_t tag;
};
inline constexpr int kMaxWritePassWrites = 32, kMaxFewWrites = 2;
// Where these can run, for any `pooling.count` up to theirs, to the same bits. On `blocks` multiprocessors; 0: on all.
bool CanRunWritePass(const WritePassCall& pass);
void RunWritePass(const WritePassCall& pass, Arrivals* arrivals, int blocks, cudaStream_t stream);
bool CanRunFewWrites(const WritePassCall& pass);
size_t FewWritesExchangeBytes(const WritePassCall& pass);
void RunFewWrites(const WritePassCall& pass, Arrivals* arrivals, int blocks, cudaStream_t stream);
// Of the device that is current when first asked.
int Multiprocessors();
int ComputeMajor();  // of its compute capability

// How one id is drawn (model/sampling/sampling_params.h).
struct Draw {
  float temperature, top_p, min_p;
  int32_t top_k;
  int32_t slot;
  uint64_t seed;
  int64_t position;  // that the id takes
};
// ids[r] from logits[r, :vocab], as model/sampling/sampler.h draws from equal logits; -1 where none can be drawn. Also
// last[draws[r].slot].
void DrawIds(const float* logits, int64_t ld, const Draw* draws, int rows, int vocab, int32_t* ids, int32_t* last,
             cudaStream_t stream);

}  // namespace smt::cuda
