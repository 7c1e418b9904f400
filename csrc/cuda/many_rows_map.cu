#include "many_rows_map.h"

#include <stdexcept>
#include <string>

namespace phiquant::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// Asked of the runtime, so that nothing has to be linked against the driver.
Encode find_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Encode>(found);
}

Encode encoder() {
  static const Encode found = find_encoder();
  return found;
}

CUtensorMapSwizzle swizzle_of(int bytes) {
  return bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
         : bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                       : CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace

bool can_map(const Matrix& matrix) {
  constexpr int64_t kMost = int64_t{1} << 31;
  return encoder() != nullptr && (reinterpret_cast<uintptr_t>(matrix.data) & 15) == 0 &&
         matrix.stride % 16 == 0 && matrix.rows < kMost && matrix.columns < kMost;
}

CUtensorMap map_boxes(const Matrix& matrix, int box_rows, int box_columns) {
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(matrix.columns),
                                 static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(matrix.stride)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const auto type =
      matrix.element == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  CUtensorMap map;
  const CUresult result =
      encoder()(&map, type, 2, const_cast<void*>(matrix.data), extents, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(box_columns * matrix.element),
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("phiquant: cuTensorMapEncodeTiled: CUresult " +
                             std::to_string(static_cast<int>(result)));
  }
  return map;
}

}  // namespace phiquant::cuda
