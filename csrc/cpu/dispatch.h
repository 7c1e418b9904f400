#pragma once

#include "kernels.h"

namespace phiquant::cpu {

// The kernels of the best instruction set of this CPU, or of the one that the environment variable
// PHIQUANT_ISA names (baseline, avx2, avx512, neon; read once). Throws std::invalid_argument if it
// names another one, or one that this CPU or build has not.
const Kernels& kernels();

}  // namespace phiquant::cpu
