// Products of one row of x with a weight of indices alone, in 8-bit tensor operations.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

// Whether the kernel takes what `multiplies` takes.
bool multiplies_indices(const ProductTask& task);
void multiply_indices(const ProductTask& task, cudaStream_t stream);

}  // namespace phiquant::cuda
