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
         : bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
         : bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                       : CU_TENSOR_MAP_SWIZZLE_NONE;
}

// Sizes of the fastest dimension first; a stride is in bytes.
template <int dimensions>
struct Extents {
  cuuint64_t size[dimensions], stride[dimensions - 1];
  cuuint32_t box[dimensions];
};

template <int dimensions>
CUtensorMap encode(const Matrix& matrix, const Extents<dimensions>& extents) {
  const cuuint32_t steps[3] = {1, 1, 1};
  const auto type =
      matrix.element == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  const int bytes = static_cast<int>(extents.box[0]) * matrix.element;
  CUtensorMap map;
  const CUresult result = encoder()(
      &map, type, dimensions, const_cast<void*>(matrix.data), extents.size, extents.stride,
      extents.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(bytes),
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("phiquant: cuTensorMapEncodeTiled: CUresult " +
                             std::to_string(static_cast<int>(result)));
  }
  return map;
}

}  // namespace

bool can_map(const Matrix& matrix) {
  constexpr int64_t kMost = int64_t{1} << 31;
  return encoder() != nullptr && (reinterpret_cast<uintptr_t>(matrix.data) & 15) == 0 &&
         matrix.stride % 16 == 0 && matrix.rows < kMost && matrix.columns < kMost;
}

CUtensorMap map_boxes(const Matrix& matrix, int box_rows, int box_columns) {
  const auto columns = static_cast<cuuint64_t>(matrix.columns);
  const auto rows = static_cast<cuuint64_t>(matrix.rows);
  const auto box = static_cast<cuuint32_t>(box_columns), tall = static_cast<cuuint32_t>(box_rows);
  return encode<2>(matrix,
                   {{columns, rows}, {static_cast<cuuint64_t>(matrix.stride)}, {box, tall}});
}

CUtensorMap map_groups(const Matrix& matrix, int box_rows, int group, int box_groups) {
  const auto columns = static_cast<cuuint64_t>(matrix.columns);
  const auto rows = static_cast<cuuint64_t>(matrix.rows);
  const auto stride = static_cast<cuuint64_t>(matrix.stride);
  const auto wide = static_cast<cuuint32_t>(group), tall = static_cast<cuuint32_t>(box_rows);
  if (matrix.columns % group != 0) {
    return encode<3>(matrix, {{columns, rows, 1}, {stride, stride * rows}, {wide, tall, 1}});
  }
  const auto next = static_cast<cuuint64_t>(group * matrix.element);
  const auto deep = static_cast<cuuint32_t>(box_groups);
  return encode<3>(matrix, {{wide, rows, columns / wide}, {stride, next}, {wide, tall, deep}});
}

}  // namespace phiquant::cuda
