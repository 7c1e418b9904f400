// Groups of 4-bit indices with no or 4 deviation bits, in registers: the two configurations that
// decide speed. Needs AVX-512 VBMI.
#pragma once

#include "words.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kPiece = 64;  // weights that are unpacked at once

PHIQUANT_INLINE bool has_nibbles(const Layout& layout) {
  return layout.grid == GridName::kPhi && layout.index_bits == 4 &&
         (layout.deviation_bits == 0 || layout.deviation_bits == 4);
}

// A chunk is 64 weights, or 32 where groups are that small; a step is 16 weights.
template <int chunk>
PHIQUANT_INLINE __m512i load_chunk(const uint8_t* plane) {
  return chunk == 32 ? _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)plane))
                     : _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)plane));
}

// Codes in bytes: even weights in the lower 32, odd weights in the upper.
template <int deviation_bits, int chunk>
PHIQUANT_INLINE __m512i join_codes(const uint8_t* index, const uint8_t* deviation) {
  const __m512i upper_half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
  const __m512i low_nibbles = _mm512_set1_epi8(15);
  const __m512i indices = load_chunk<chunk>(index);
  if (deviation_bits == 0) {
    return _mm512_and_si512(_mm512_srlv_epi32(indices, upper_half), low_nibbles);
  }
  const __m512i lower_half = _mm512_sub_epi32(_mm512_set1_epi32(4), upper_half);
  const __m512i deviations = _mm512_srlv_epi32(load_chunk<chunk>(deviation), upper_half);
  constexpr int kSelect = 0xCA;  // first ? second : third, bit by bit
  return _mm512_ternarylogic_epi32(low_nibbles, deviations, _mm512_sllv_epi32(indices, lower_half),
                                   kSelect);
}

// Where the 16 weights of each step are in such bytes, to be put into one byte of every lane.
struct Places {
  alignas(64) uint8_t byte[4][64];
};
constexpr Places places_for(int byte) {
  Places places{};
  for (int weight = 0; weight < 64; weight++) {
    places.byte[weight / 16][weight % 16 * 4 + byte] =
        static_cast<uint8_t>(weight / 2 + weight % 2 * 32);
  }
  return places;
}
static constexpr Places kFirstByte = places_for(0), kSecondByte = places_for(1),
                        kThirdByte = places_for(2);

// The level of an index is one look-up in these, exact.
struct IndexLevels {
  alignas(64) float level[kBendCount][16];

  PHIQUANT_MEMBER explicit IndexLevels(const Curve& curve) {
    for (int bend = 0; bend < kBendCount; bend++) {
      for (int code = 0; code < 16; code++) {
        const float p = static_cast<float>(code - 7);
        level[bend][code] = ((p * p) * curve.cubic[bend] + curve.line[bend]) * p;
      }
    }
  }
};

PHIQUANT_INLINE vf look_up(vf table, __m512i codes, int step) {
  const __m512i place = _mm512_load_si512(kFirstByte.byte[step]);
  const __m512i indices = _mm512_maskz_permutexvar_epi8(0x1111111111111111, place, codes);
  return _mm512_permutexvar_ps(indices, table);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
