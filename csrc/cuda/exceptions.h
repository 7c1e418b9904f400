// The exception plane: weights that no sub-cell holds; its kernel is in exceptions.cu.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

// Into what `task` decoded.
void put_exceptions(const DecodeTask& task, cudaStream_t stream);

}  // namespace phiquant::cuda
