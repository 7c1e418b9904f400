// How sums of a product become its results.
#pragma once

#include "floats.cuh"
#include "kernels.h"

namespace phiquant::cuda {

// out[m, row] = sum + bias[row], rounded once.
template <class T>
__device__ __forceinline__ void store_sum(const ProductTask& task, int64_t m, int64_t row,
                                          float sum) {
  if (task.bias != nullptr) sum += widened(__ldcg(static_cast<const T*>(task.bias) + row));
  T* const to = static_cast<T*>(task.out) + m * task.out_features + row;
  if constexpr (__is_same(T, __half)) {
    *to = __float2half_rn(sum);
  } else {
    *to = __float2bfloat16_rn(sum);
  }
}

}  // namespace phiquant::cuda
