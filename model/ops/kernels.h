// The float32 CPU kernels behind CpuSlotRunner, one table of functions for each instruction set.
//
// Batch invariance: every output is a fixed sequence of float32 operations that depends on its own row only. A matrix
// product's element is one chain of fused multiply-adds over k in order; a reduction is 16 interleaved lanes and then a
// fixed tree; exp and log1p are our own FMA polynomials. So a row's bits do not depend on how many rows came with it,
// on tiling, on threads or on the vector width: the AVX-512, AVX2 and scalar tables give equal bits
// (tests/model/ops_test.cc).
//
// All functions are pure in their arguments and thread-safe. Pointers need no alignment. "Row-major [r, c], stride s"
// means element (i, j) is at i * s + j.
#pragma once

#include <cstdint>

namespace smt::ops {

enum class Activation {
  kNone,
  kGelu,      // tanh form: x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
  kSoftplus,  // log(1 + exp(x)); x itself above 20
  kTanh,
  kSilu,
  kRelu,
};

constexpr int64_t kPanel = 32;  // columns of a packed weight panel

// y[i, j] = act(sum_k x[i, k] w[k, j] + bias[j]) + residual[i, j], for the columns of panels [first_panel, last_panel).
struct LinearArgs {
  const float* x;  // [m, k], stride x_stride
  int64_t x_stride;
  const void* panels;  // [ceil(n / 32)][k][32], bf16 or float32, zeros beyond n
  bool bf16;
  int64_t m, k, n;
  const float* bias;  // [n] or null
  Activation activation;
  const float* residual;  // [m, n], stride residual_stride, or null; may be y
  int64_t residual_stride;
  float* y;  // [m, n], stride y_stride
  int64_t y_stride;
};

// One window row attending to its slot's cached columns: memory columns [0, memory_valid) and columns [n, position].
struct AttentionArgs {
  const float* q;       // [heads * head_dim]
  const float* keys;    // [heads, head_dim, padded]: transposed, so that 16 columns are scored at once
  const float* values;  // [padded, heads * head_dim]
  int64_t heads, head_dim;
  int64_t padded;  // columns, a multiple of 16
  int64_t memory_valid, n;
  int64_t position;  // the row's own column; < n for a memory row, which sees [0, position]
  float scale;       // 1 / sqrt(head_dim)
  float* scratch;    // [heads * (padded + 1)]
  float* out;        // [heads * head_dim]
};

// One token of the depthwise causal convolution, then SiLU, for channels [first, last).
struct ConvArgs {
  const float* x;       // [d_inner] newest input
  const float* weight;  // [d_inner, d_conv], oldest tap first
  const float* bias;    // [d_inner] or null
  float* state;         // [d_inner, d_conv], shifted by one and given x
  int64_t d_conv;
  float* y;  // [d_inner]
};

// One token of the selective scan for channels [first, last):
// state = exp(dt A) state + dt B x;  y = (state . C + D x) silu(gate).
struct ScanArgs {
  const float* x;     // [d_inner]
  const float* dt;    // [d_inner], after softplus
  const float* a;     // [d_inner, d_state], = -exp(A_log)
  const float* b;     // [d_state]
  const float* c;     // [d_state]
  const float* d;     // [d_inner]
  const float* gate;  // [d_inner]
  float* state;       // [d_inner, d_state]
  int64_t d_state;
  float* y;  // [d_inner]
};

struct Kernels {
  const char* name;  // "avx512" | "avx2" | "scalar"
  void (*linear)(const LinearArgs& args, int64_t first_panel, int64_t last_panel);
  void (*attention)(const AttentionArgs& args);
  void (*layer_norm)(const float* x, const float* gain, const float* bias, int64_t d, float epsilon, float* y);
  void (*rms_norm)(const float* x, const float* gain, int64_t d, float epsilon, float* y);
  float (*dot)(const float* a, const float* b, int64_t d);
  // x becomes softmax(x * scale).
  void (*softmax)(float* x, int64_t count, float scale);
  // out = sum_i weights[i] rows[i], a chain over i; rows is [count, d] dense. Null weights are all 1 / count.
  void (*weighted_sum)(const float* rows, const float* weights, int64_t count, int64_t d, float* out);
  void (*conv)(const ConvArgs& args, int64_t first, int64_t last);
  void (*scan)(const ScanArgs& args, int64_t first, int64_t last);
  void (*activate)(Activation activation, const float* x, int64_t count, float* y);
  void (*add)(const float* a, const float* b, int64_t count, float* y);
  // y = a x + z, elementwise.
  void (*diagonal)(const float* a, const float* x, const float* z, int64_t count, float* y);
  void (*widen)(const uint16_t* bf16, int64_t count, float* y);
};

// The best table this processor can run.
const Kernels& BestKernels();
// Null where this processor or build lacks it.
const Kernels* Avx512Kernels();
const Kernels* Avx2Kernels();
const Kernels* ScalarKernels();

}  // namespace smt::ops
