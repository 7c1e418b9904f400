// Products of few rows with the experts that they belong to.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

// Where each expert's rows end: int32 or int64.
struct Ends {
  const void* of;
  bool wide;

#ifdef __CUDACC__
  // Within 0 .. `most`; of the expert before the first one 0.
  __device__ __forceinline__ int64_t at(int64_t expert, int64_t most) const {
    if (expert < 0) return 0;
    const int64_t end = wide ? __ldcg(static_cast<const long long*>(of) + expert)
                             : __ldcg(static_cast<const int*>(of) + expert);
    return end < 0 ? 0 : end < most ? end : most;
  }
#endif
};

// out[i] = x[i] . weight[e] for the rows ends[e - 1] <= i < ends[e] of each expert e. Lossy planes
// of [experts, out_features, columns]. What `ends` say is taken within 0 .. tokens.
struct GroupedTask {
  Layout layout;
  Planes planes;
  const void* x;  // [tokens, columns] of dtype, contiguous
  Ends ends;      // [experts], ascending
  void* out;      // [tokens, out_features] of dtype; rows of no expert become zero
  Dtype dtype;
  int64_t tokens;
  int64_t experts;  // at most 65535
  int64_t out_features;
};

void multiply_grouped(const GroupedTask& task, cudaStream_t stream);

}  // namespace phiquant::cuda
