// Bits of remainders from tables, where an instruction set has them: see table_bits_avx512.h.
#pragma once

#include "search.h"

namespace phiquant::cpu::PHIQUANT_ISA {

#if !defined(PHIQUANT_TABLE_BITS)
template <Priced, int32_t, class T>
PHIQUANT_INLINE bool table_bits(const Layout&, float, int, const T*, vi*) {
  return false;
}
#endif

}  // namespace phiquant::cpu::PHIQUANT_ISA
