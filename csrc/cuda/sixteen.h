// Products of up to 16 rows of x on Hopper, where that is the faster way (sixteen_kernel.cuh).
#pragma once

#include "grouped.h"
#include "kernels.h"

namespace phiquant::cuda {

bool multiplies_sixteen(const ProductTasks& tasks);
bool fit_one_pass(const ProductTasks& tasks);
void multiply_sixteen(const ProductTasks& tasks, cudaStream_t stream);

// The same for experts, with any number of rows.
bool multiplies_sixteen(const GroupedTask& task);
void multiply_sixteen(const GroupedTask& task, cudaStream_t stream);

}  // namespace phiquant::cuda
