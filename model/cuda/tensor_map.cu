#include "model/cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include "model/cuda/gemm_wgmma.h"
#include "model/cuda/tensor_core.cuh"

namespace smt::cuda {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// From the driver, which is loaded already, so that nothing links to libcuda.
EncodeTiled FindEncodeTiled() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result) !=
          cudaSuccess ||
      result != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<EncodeTiled>(found);
}

// Null if the device has no wgmma.
EncodeTiled Encode() {
  static const EncodeTiled found = [] {
    int device = 0, minor = 0;
    CheckCuda(cudaGetDevice(&device), "asking for the device");
    CheckCuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the device");
    return ComputeMajor() == 9 && minor == 0 ? FindEncodeTiled() : nullptr;
  }();
  return found;
}

void CheckMap(CUresult made) {
  CheckCuda(made == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "making a tensor map");
}

template <typename E>
constexpr CUtensorMapDataType kMapType =
    kIsHalf<E> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;

}  // namespace

bool HasWgmma() { return Encode() != nullptr; }

template <typename E>
CUtensorMap MapOf(const E* data, int k, int rows, int64_t ld, int planes, int64_t plane, int box_rows) {
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(planes)};
  const auto stride = static_cast<cuuint64_t>(ld) * 2;
  const cuuint64_t strides[] = {stride, planes > 1 ? static_cast<cuuint64_t>(plane) * 2 : stride * sizes[1]};  // bytes
  const cuuint32_t box[] = {kSlab, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(planes)};
  const cuuint32_t steps[] = {1, 1, 1};
  CheckMap(Encode()(&map, kMapType<E>, 3, const_cast<E*>(data), sizes, strides, box, steps,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  return map;
}
template CUtensorMap MapOf(const __nv_bfloat16*, int, int, int64_t, int, int64_t, int);
template CUtensorMap MapOf(const __half*, int, int, int64_t, int, int64_t, int);

template <typename T>
CUtensorMap MapOfOutputs(const Epilogue<T>& epilogue) {
  CUtensorMap map;
  const bool floats = sizeof(T) == 4 || epilogue.float_output;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(epilogue.n), static_cast<cuuint64_t>(epilogue.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(epilogue.ldy) * (floats ? 4 : 2)};  // bytes
  const cuuint32_t box[] = {floats ? 32u : 64u, 64}, steps[] = {1, 1};
  CheckMap(Encode()(&map, floats ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : kMapType<T>, 2, epilogue.y, sizes, strides, box,
                    steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  return map;
}
template CUtensorMap MapOfOutputs(const Epilogue<__nv_bfloat16>&);
template CUtensorMap MapOfOutputs(const Epilogue<__half>&);
template CUtensorMap MapOfOutputs(const Epilogue<float>&);

}  // namespace smt::cuda
