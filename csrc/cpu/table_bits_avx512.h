// How many bits the remainders of a group take, by tables of sub-cells' widths (subcell_table.h):
// bf16 weights of 4 index and 4 deviation bits. Needs AVX-512 VBMI.
//
// Data contract: numbers of the sub-cells of a whole group, below 144, each in the low byte of 32
// bits whose other bytes are `kAbove`. 64 weights take 12 instructions: 5 bring their numbers to
// bytes, 5 look widths up, 2 sum them. Computing the edges takes 80 for 16 weights.
#pragma once

#include "search.h"
#include "subcell_table.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Four vectors to one of bytes; each lane has one number of each vector. Vectors from `vectors` on
// are not there, their bytes are of no use.
template <int32_t kAbove, class T>
PHIQUANT_INLINE __m512i number_bytes(const T* number, int vectors) {
  constexpr int kXor = 0x96;
  constexpr uint32_t kBits = static_cast<uint32_t>(kAbove);
  const auto at = [&](int i) { return (__m512i)load<vi>(number + i * kLanes); };
  const __m512i second = _mm512_slli_epi32(at(1), 8);
  const __m512i above = (__m512i)splat(static_cast<int32_t>(kBits ^ kBits << 8));
  if (vectors < 4) return _mm512_ternarylogic_epi32(at(0), second, above, kXor);
  constexpr bool kCleared = (kBits << 16) == 0;
  static_assert(kCleared);
  const __m512i three =
      _mm512_ternarylogic_epi32(at(0), second, _mm512_slli_epi32(at(2), 16), kXor);
  return _mm512_ternarylogic_epi32(three, _mm512_slli_epi32(at(3), 24), above, kXor);
}

// False if no table has this scale, or both sides of zero differ. The sum of `bits` over its lanes
// counts.
template <Priced priced, int32_t kAbove, class T>
PHIQUANT_INLINE bool table_bits(const Layout& layout, float scale, int bend, const T* number,
                                vi* bits) {
  if constexpr (priced != Priced::kBFloat16) return false;
  if (layout.index_bits != 4 || layout.deviation_bits != 4) return false;
  uint32_t word;
  std::memcpy(&word, &scale, sizeof word);
  const uint32_t exponent = word >> 23,
                 place = static_cast<uint32_t>(bend) << 7 | (word >> 16 & 127);
  if (exponent < kLeastExponent || exponent > kTableExponent) return false;
  const SubcellTables& tables = subcell_tables();
  if (tables.second[place] != 0) [[unlikely]]
    return false;
  const SubcellTable& table = tables.table[place];
  const __m512i lower = _mm512_load_si512(table.width.of);
  const __m512i upper = _mm512_load_si512(table.width.of + 64);
  const __m512i tail = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)table.width_tail.of));
  __m512i sum = _mm512_setzero_si512();
  for (int at = 0; at < layout.group_size; at += 4 * kLanes) {
    const int vectors = layout.group_size < 64 ? 2 : 4;
    const __m512i numbers = number_bytes<kAbove>(number + at, vectors);
    __m512i width = _mm512_permutex2var_epi8(lower, numbers, upper);
    width = _mm512_mask_permutexvar_epi8(width, _mm512_movepi8_mask(numbers), numbers, tail);
    if (vectors < 4) width = _mm512_maskz_mov_epi8(0x3333333333333333, width);
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(width, _mm512_setzero_si512()));
  }
  *bits = (vi)sum;
  return true;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
