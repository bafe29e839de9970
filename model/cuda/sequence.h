// Launchers of the kernels that carry a session's state through many writes in a row. They stand in for those of
// kernels.h that take a step a session (MambaConv, MambaScan, SimpleSsm, PushMemory), with the same arguments and, row
// for row, the same bits: a pass's rows are its writes, and Pooling's sequences say which are neighbours.
//
// Rows of a pass see each other in the convolution, the scan and the push alone.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/cuda/kernels.h"

namespace smt::cuda {

// A session's writes in a pass, neighbours, oldest first: rows [first_row, first_row + rows). A slot has at most one.
struct Sequence {
  int32_t slot;
  int32_t first_row, rows;  // rows >= 1
  int32_t memory_valid;     // memory vectors before the first write
};

// Inputs from before the pass come from the slots, which stay as they are: SequenceScan moves them on.
void SequenceConv(const Pooling& writes, const MambaShape& shape, int layer, const float* xz, int64_t ld_xz,
                  const float* weight, const float* bias, float* y, int64_t ld, const SplitRows& split,
                  cudaStream_t stream);
// Row after row; then stores the SSM's states, and the layer's last convolution inputs out of xz.
void SequenceScan(const Pooling& writes, const MambaShape& shape, int layer, const float* x, int64_t ld_x,
                  const float* dt, int64_t ld_dt, const float* parameters, int64_t ld_parameters, const float* a,
                  const float* skip, const float* xz, int64_t ld_xz, float* y, int64_t ld, const SplitRows& split,
                  cudaStream_t stream);
void SequenceSimpleSsm(const Pooling& writes, int layer, const float* decay, const float* skip, float* x, int64_t ld_x,
                       const float* u, int64_t ld_u, float* hidden, int64_t ld_hidden, cudaStream_t stream);
// The last n of what the slot has and its rows put out.
void PushSequences(const Pooling& writes, const float* output, int64_t ld, cudaStream_t stream);

}  // namespace smt::cuda
