// Products of few rows with the experts that they belong to.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

// out[i] = x[i] . weight[e] for the rows ends[e - 1] <= i < ends[e] of each expert e. Lossy planes
// of [experts, out_features, columns]. What `ends` say is taken within 0 .. tokens.
struct GroupedTask {
  Layout layout;
  Planes planes;
  const void* x;        // [tokens, columns] of dtype, contiguous
  const int64_t* ends;  // [experts], ascending
  void* out;            // [tokens, out_features] of dtype; rows of no expert are left as they are
  Dtype dtype;
  int64_t tokens;
  int64_t experts;  // at most 65535
  int64_t out_features;
};

void multiply_grouped(const GroupedTask& task, cudaStream_t stream);

}  // namespace phiquant::cuda
