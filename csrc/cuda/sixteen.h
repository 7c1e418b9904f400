// Products of 5 to 16 rows of x with indices alone (sixteen_kernel.cuh).
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

bool multiplies_sixteen(const ProductTask& task);
void multiply_sixteen(const ProductTask& task, cudaStream_t stream);

}  // namespace phiquant::cuda
