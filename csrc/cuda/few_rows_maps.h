// Planes as the bulk copies take them: boxes of 256 rows and 128 columns, zeros outside.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "few_rows.cuh"

namespace phiquant::cuda {

// The driver's, looked up once so that nothing has to be linked with it; null if it has none.
inline auto tensor_map_encoder() {
  static const auto encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                     &result);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    if (result != cudaDriverEntryPointSuccess) found = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return encoder;
}

// `bits`: of a code. The boxes' rows are 32 or 64 bytes, of which parts of 16 lie permuted so that
// lanes of different rows meet different banks.
inline bool encode_map(const void* plane, int bits, const FewPlan& plan, CUtensorMap* map) {
  const cuuint64_t bytes = static_cast<cuuint64_t>(plan.groups) * 8 * static_cast<unsigned>(bits);
  const cuuint64_t sizes[2] = {bytes, static_cast<cuuint64_t>(plan.task.out_features)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(kUnitGroups * 8 * bits), kUnitRows};
  const cuuint32_t steps[2] = {1, 1};
  return tensor_map_encoder()(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(plane),
                              sizes, &bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                              bits == 4 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_32B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace phiquant::cuda
