// What encoding on a GPU is given; as kernels.h says of the others.
#pragma once

#include "kernels.h"
#include "phiquant/fit.h"

namespace phiquant::cuda {

enum class Fault : int32_t { kNone, kNotFinite, kImportance };

// What n remainder bits multiply a score by: 2^(n * step / 32).
struct Prices {
  double thirty_seconds[32];  // 2^(i / 32)
  int32_t step;               // of a bit; 0 if bits cost nothing
};

// The lossy planes of weight[rows, columns].
struct EncodeTask {
  Layout layout;
  Fit fit;
  Dtype dtype;
  bool exact;  // weights that are not finite are left to the exceptions; others are a fault
  Prices prices;
  const void* weight;       // contiguous, of dtype
  const float* importance;  // [columns], as `spread_importance` left it; or null
  int64_t rows;
  uint8_t* index;
  uint8_t* deviation;
  uint8_t* deviation_low;
  uint16_t* scale;
  Fault* fault;  // set if there is one
};

// Both launch on `stream` of the current device and return at once.
void encode(const EncodeTask& task, cudaStream_t stream);

// fp32 [columns], scaled in every group by a power of two to near 1 at most, so that products with
// squared errors stay in range. Negative numbers and those that are not finite are a fault.
void spread_importance(const Layout& layout, const float* given, float* spread, Fault* fault,
                       cudaStream_t stream);

}  // namespace phiquant::cuda
