// The first pass (scan.h) over groups of indices alone, in 16 bits.
//
// Data contract: as in halves_avx512.h. 32 weights take 10 instructions a candidate (scan.h: 16
// take 25 a bend): one makes a number of a size, 2 find its segment's edge, 3 see on which side it
// is and whether that is certain, 2 look its level up and 2 sum the square of what is between. 4 or
// 5 of them are bound to either of two ports.
#pragma once

#include "scan_least_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Both signs of one bend.
template <bool geometric>
PHIQUANT_INLINE void scan_halves(const PhiSearch& search, const Halves& halves, int bend,
                                 Scan* out) {
  const HalvesTable& table = search.scan[bend].halves;
  const __m512i edge = _mm512_load_si512(table.edge), below = _mm512_load_si512(table.below),
                above = _mm512_load_si512(table.above);
  const __m512i factor[2] = {_mm512_set1_epi32(halves.factor[2 * bend]),
                             _mm512_set1_epi32(halves.factor[2 * bend + 1])};
  const int vectors = search.layout.group_size / (2 * kLanes);
  __m512i nearest[2] = {_mm512_set1_epi16(-1), _mm512_set1_epi16(-1)}, sum[2]{};
  for (int here = 0; here < search.layout.group_size; here += 2 * kLanes) {
    for (int i = 0; i < 2; i++) {
      const __m512i number = _mm512_mulhi_epu16(_mm512_load_si512(halves.size + here), factor[i]);
      const __m512i segment = segment_of<geometric>(number);
      const __m512i past = _mm512_sub_epi16(number, _mm512_permutexvar_epi16(segment, edge));
      const __mmask32 is_above = _mm512_cmpgt_epi16_mask(past, _mm512_set1_epi16(kHalvesDoubt / 2));
      nearest[i] = _mm512_min_epu16(nearest[i], past);
      const __m512i level = _mm512_mask_permutexvar_epi16(_mm512_permutexvar_epi16(segment, below),
                                                          is_above, segment, above);
      const __m512i off = _mm512_sub_epi16(number, level);
      sum[i] = _mm512_dpwssd_epi32(sum[i], off, off);
    }
  }
  for (int i = 0; i < 2; i++) {
    const __mmask32 doubtful = _mm512_cmple_epu16_mask(nearest[i], _mm512_set1_epi16(kHalvesDoubt));
    out->index[2 * bend + i] = to_float((vi)sum[i]);
    out->doubtful[2 * bend + i] = __builtin_popcount(doubtful) * vectors;
  }
}

// All candidates; with deviation, errors' least.
template <bool deepest>
PHIQUANT_INLINE void scan_in_halves(const PhiSearch& search, const Group& group,
                                    const Candidates& candidates, Scan* out) {
  Halves halves;
  find_halves(search, group, candidates, &halves);
  if constexpr (deepest) return scan_least(search, halves, out);
  for (int bend = 0; bend < kBendCount; bend++) {
    if (search.scan[bend].halves.geometric) {
      scan_halves<true>(search, halves, bend, out);
    } else {
      scan_halves<false>(search, halves, bend, out);
    }
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
