// fp32 to bf16 in registers.
#pragma once

#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// bf16 in the upper halves of lanes, to nearest even, denormals kept; the lower halves are left.
PHIQUANT_INLINE vi rounded_bfloat16s(vf value) {
  const vi bits = (vi)value;
  return bits + 0x7FFF + ((bits >> 16) & 1);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
