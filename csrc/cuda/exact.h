// All planes to the original weights; its kernel is in exact.cu.
#pragma once

#include "kernels.h"

namespace phiquant::cuda {

void decode_exact(const DecodeTask& task, cudaStream_t stream);

}  // namespace phiquant::cuda
