// Positions of 4-bit indices with deviations, in registers, 16 at a time: fp32, exact, in units of
// sub-cells.
#pragma once

#include "nibbles_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

PHIQUANT_INLINE bool has_nibble_indices(const Layout& layout) {
  return layout.grid == GridName::kPhi && layout.index_bits == 4;
}

// Planes from one weight on, whose number is a multiple of 32.
template <int deviation_bits>
struct PlanesAt {
  const uint8_t *index = nullptr, *deviation = nullptr, *low = nullptr;

  PHIQUANT_MEMBER PlanesAt() {}
  PHIQUANT_MEMBER PlanesAt(const Planes& planes, int64_t weight)
      : index(planes.index + weight / 2) {
    if (deviation_bits != 0) deviation = planes.deviation + weight / (deviation_bits == 2 ? 4 : 2);
    if (deviation_bits == 8) low = planes.deviation_low + weight / 2;
  }
  PHIQUANT_MEMBER PlanesAt after(int64_t weights) const {
    return {Planes{index, deviation, low, nullptr}, weights};
  }
  // Has memory asked for so many bytes of indices later, and what belongs to them.
  PHIQUANT_MEMBER void ask_for(int64_t ahead) const {
    prefetch(index + ahead);
    if (deviation_bits != 0) prefetch(deviation + (deviation_bits == 2 ? ahead / 2 : ahead));
    if (deviation_bits == 8) prefetch(low + ahead);
  }
};

// 2-bit deviations in bytes, where join_codes has their indices; the upper 6 bits are others'.
template <int chunk>
PHIQUANT_INLINE __m512i spread_pairs(const uint8_t* deviation) {
  const __m512i dwords = _mm512_setr_epi32(0, 0, 1, 0, 2, 0, 3, 0, 0, 0, 1, 0, 2, 0, 3, 0);
  // Of two bytes of indices, the even weights' deviations are bits 0 and 4, odd ones' 2 and 6.
  const __m512i even = _mm512_set1_epi64(0x1C1814100C080400), odd = _mm512_set1_epi8(2);
  const __m512i bits = _mm512_mask_add_epi64(even, 0xF0, even, odd);
  const __m128i some = chunk == 32 ? _mm_loadl_epi64((const __m128i*)deviation)
                                   : _mm_loadu_si128((const __m128i*)deviation);
  const __m128i all = chunk == 32 ? _mm_unpacklo_epi64(some, some) : some;
  const __m512i spread = _mm512_permutexvar_epi32(dwords, _mm512_castsi128_si512(all));
  return _mm512_multishift_epi64_epi8(bits, spread);
}

// A code becomes the second byte of 2^15 + code, and the third where it has 12 bits.
inline constexpr uint32_t kBiased = 0x47000000;  // 2^15
inline constexpr __mmask64 kSecondBytes = 0x2222222222222222, kThirdBytes = 0x4444444444444444;

PHIQUANT_INLINE __m512i biased_codes(__m512i codes, int step) {
  const __m512i place = _mm512_load_si512(kSecondByte.byte[step]);
  return _mm512_mask_permutexvar_epi8(_mm512_set1_epi32(kBiased), kSecondBytes, place, codes);
}

template <int deviation_bits, int chunk>
struct Positions;

template <int chunk>
struct Positions<2, chunk> {
  __m512i codes;

  PHIQUANT_MEMBER explicit Positions(const PlanesAt<2>& planes) {
    // Even indices move left by 2, odd ones, in the upper half, right.
    const __m512i left = _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 30, 30, 30, 30, 30, 30, 30, 30);
    const __m512i indices = _mm512_rolv_epi32(load_chunk<chunk>(planes.index), left);
    constexpr int kSelect = 0xCA;  // first ? second : third, bit by bit
    const __m512i joined = _mm512_ternarylogic_epi32(
        _mm512_set1_epi8(3), spread_pairs<chunk>(planes.deviation), indices, kSelect);
    codes = _mm512_and_si512(joined, _mm512_set1_epi8(63));
  }
  PHIQUANT_MEMBER vf at(int step) const {
    return (vf)biased_codes(codes, step) - (32768.0f + 29.5f);
  }
};

template <int chunk>
struct Positions<4, chunk> {
  __m512i codes;

  PHIQUANT_MEMBER explicit Positions(const PlanesAt<4>& planes)
      : codes(join_codes<4, chunk>(planes.index, planes.deviation)) {}

  PHIQUANT_MEMBER vf at(int step) const {
    return (vf)biased_codes(codes, step) - (32768.0f + 119.5f);
  }
};

template <int chunk>
struct Positions<8, chunk> {
  __m512i indices, deviations;

  PHIQUANT_MEMBER explicit Positions(const PlanesAt<8>& planes)
      : indices(join_codes<0, chunk>(planes.index, nullptr)),
        deviations(join_codes<4, chunk>(planes.deviation, planes.low)) {}

  PHIQUANT_MEMBER vf at(int step) const {
    const __m512i third = _mm512_load_si512(kThirdByte.byte[step]),
                  low = biased_codes(deviations, step);
    return (vf)_mm512_mask_permutexvar_epi8(low, kThirdBytes, third, indices) -
           (32768.0f + 1919.5f);
  }
};

}  // namespace phiquant::cpu::PHIQUANT_ISA
