// The first pass (scan.h) over groups with deviation, in 16 bits: by how much both tiers are off at
// least. The likeliest candidate is scored exactly, and the others' bounds are held against that.
//
// Data contract: as in halves_avx512.h. 32 weights take 18 instructions a candidate (scan.h: 16
// take 37 a bend): 2 make a number of a size and find its segment, 6 sum the square of what is
// between the number and the nearer of two levels, 10 that of what is between its position and the
// centre of a sub-cell, less what this may be off by. 6 of them are bound to one of two ports, 4 to
// the other.
#pragma once

#include "halves_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Both signs of one bend. Two vectors go through each step together: their chains are longer than a
// processor looks ahead.
template <bool geometric, int vectors>
PHIQUANT_INLINE void scan_least(const HalvesTable& table, const Halves& halves, int bend,
                                Scan* out) {
  constexpr int kSigns = 2, kTogether = vectors < 2 ? vectors : 2, kChains = kTogether * kSigns;
  const __m512i middle = _mm512_load_si512(table.middle), apart = _mm512_load_si512(table.apart),
                rate = _mm512_load_si512(table.rate), start = _mm512_load_si512(table.start),
                reach = _mm512_load_si512(table.reach), doubt = _mm512_load_si512(table.doubt);
  const __m512i factor[kSigns] = {_mm512_set1_epi32(halves.factor[2 * bend]),
                                  _mm512_set1_epi32(halves.factor[2 * bend + 1])};
  __m512i index[kSigns]{}, deepest[kSigns]{};
  for (int at = 0; at < vectors; at += kTogether) {
    __m512i number[kChains], segment[kChains], off[kChains], away[kChains];
    for (int i = 0; i < kChains; i++) {
      const uint16_t* size = halves.size + (at + i / kSigns) * 2 * kLanes;
      number[i] = _mm512_mulhi_epu16(_mm512_load_si512(size), factor[i % kSigns]);
    }
    for (int i = 0; i < kChains; i++) segment[i] = segment_of<geometric>(number[i]);
    for (int i = 0; i < kChains; i++) {
      off[i] = _mm512_sub_epi16(number[i], _mm512_permutexvar_epi16(segment[i], middle));
      away[i] = _mm512_mullo_epi16(number[i], _mm512_permutexvar_epi16(segment[i], rate));
    }
    for (int i = 0; i < kChains; i++) {
      off[i] = _mm512_abs_epi16(off[i]);
      away[i] = _mm512_add_epi16(away[i], _mm512_permutexvar_epi16(segment[i], start));
    }
    for (int i = 0; i < kChains; i++) {
      off[i] = _mm512_sub_epi16(off[i], _mm512_permutexvar_epi16(segment[i], apart));
      away[i] = _mm512_mulhrs_epi16(away[i], _mm512_permutexvar_epi16(segment[i], reach));
    }
    for (int i = 0; i < kChains; i++) {
      __m512i* sum = index + i % kSigns;
      *sum = _mm512_dpwssd_epi32(*sum, off[i], off[i]);
      away[i] =
          _mm512_subs_epu16(_mm512_abs_epi16(away[i]), _mm512_permutexvar_epi16(segment[i], doubt));
    }
    for (int i = 0; i < kChains; i++) {
      __m512i* sum = deepest + i % kSigns;
      *sum = _mm512_dpwssd_epi32(*sum, away[i], away[i]);
    }
  }
  for (int i = 0; i < kSigns; i++) {
    out->index[2 * bend + i] = to_float((vi)index[i]);
    out->deepest[2 * bend + i] = to_float((vi)deepest[i]);
  }
}

// All candidates.
template <int vectors>
PHIQUANT_INLINE void scan_least(const PhiSearch& search, const Halves& halves, Scan* out) {
  for (int bend = 0; bend < kBendCount; bend++) {
    const HalvesTable& table = search.scan[bend].halves;
    if (table.geometric) {
      scan_least<true, vectors>(table, halves, bend, out);
    } else {
      scan_least<false, vectors>(table, halves, bend, out);
    }
  }
}

PHIQUANT_INLINE void scan_least(const PhiSearch& search, const Halves& halves, Scan* out) {
  switch (search.layout.group_size) {
    case 32:
      return scan_least<1>(search, halves, out);
    case 64:
      return scan_least<2>(search, halves, out);
    default:
      return scan_least<4>(search, halves, out);
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
