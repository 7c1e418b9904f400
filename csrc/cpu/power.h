// Powers of two with fractions: what the bits of remainders multiply scores by.
#pragma once

#include <cstring>

#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// 2^(units / 32).
PHIQUANT_INLINE double power(const double* thirty_seconds, int64_t units) {
  const uint64_t bits = static_cast<uint64_t>(1023 + (units >> 5)) << 52;
  double whole;
  std::memcpy(&whole, &bits, sizeof whole);
  return whole * thirty_seconds[units & 31];
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
