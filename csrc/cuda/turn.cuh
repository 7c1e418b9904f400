// Which stage of a ring in shared memory is next, and the parity of its barriers' phases.
#pragma once

#include <cstdint>

namespace phiquant::cuda {

template <int stages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace phiquant::cuda
