// Products of one row of x with a weight of indices alone, in 8-bit tensor operations.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

// Whether it takes what `multiplies` takes: an even number of groups a row, on a Hopper GPU, where
// it was found to be faster.
bool multiplies_indices(const ProductTasks& tasks);
void multiply_indices(const ProductTasks& tasks, cudaStream_t stream);

}  // namespace phiquant::cuda
