// Weights as numbers of 16 bits, for the first pass. Needs AVX-512 BW and VNNI.
//
// Data contract: magnitudes of an ordinary group that every candidate covers, without importance,
// in whole vectors of 32.
#pragma once

#include "search.h"

namespace phiquant::cpu::PHIQUANT_ISA {

struct Halves {
  alignas(64) uint16_t size[kLargestGroup];  // the largest is 65535; in an order of their own
  alignas(64) int32_t factor[kCandidates];   // 65536ths by which sizes become numbers, twice
};

PHIQUANT_INLINE void find_halves(const PhiSearch& search, const Group& group,
                                 const Candidates& candidates, Halves* out) {
  const float largest = group.above > group.below ? group.above : group.below;
  const vf up = splat(65535.0f / largest);
  for (int at = 0; at < search.layout.group_size; at += 2 * kLanes) {
    const __m512i low = _mm512_cvtps_epi32((__m512)(load<vf>(group.size + at) * up));
    const __m512i high = _mm512_cvtps_epi32((__m512)(load<vf>(group.size + at + kLanes) * up));
    store(out->size + at, _mm512_packus_epi32(low, high));
  }
  for (int at = 0; at < kCandidates; at += kLanes) {
    const vf unit = load<vf>(search.halves_unit + at);
    const vi factor =
        (vi)_mm512_cvtps_epi32((__m512)(load<vf>(candidates.reciprocal + at) * largest * unit));
    store(out->factor + at, factor | factor << 16);
  }
}

// Which segment a number is in.
template <bool geometric>
PHIQUANT_INLINE __m512i segment_of(__m512i number) {
  const __m512i even = _mm512_srli_epi16(number, geometric ? kCoarseShift : kEvenShift);
  if (!geometric) return even;
  const __m512i fine = _mm512_srli_epi16(number, kFineShift);
  return _mm512_add_epi16(even, _mm512_min_epu16(fine, _mm512_set1_epi16(kFineSegments - 1)));
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
