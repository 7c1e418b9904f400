// Which octet a thread decodes, and where its weights go.
#pragma once

#include <cassert>

#include "octets.cuh"

namespace phiquant::cuda {

// Row `row` of the result; its number in the weight.
__device__ __forceinline__ int64_t stored_row(const DecodeTask& task, int64_t row) {
  if (task.rows == nullptr) return row;
  const int64_t stored = task.rows[row];
  assert(stored >= 0 && stored < task.stored_rows && "index is out of range for the weight's rows");
  return stored;
}

// `count` weights from `column` on; T has the size of one.
template <class T>
__device__ __forceinline__ void store_octet(T* to, const T (&weights)[kOctet], int count) {
  constexpr int kVector = 16 / sizeof(T);
  if (count >= kOctet && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
#pragma unroll
    for (int i = 0; i < kOctet; i += kVector) {
      *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(weights + i);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kOctet; i++) {
    if (i < count) to[i] = weights[i];
  }
}

}  // namespace phiquant::cuda
