// Codes of 4 index and 0 or 4 deviation bits to nibbles in planes. Needs AVX-512 VBMI.
//
// Data contract: codes of whole groups of 64 or 128, 0 at padding. 64 weights take 13 instructions:
// 5 to bytes, one to put even weights before odd ones, and 7 to join both in two planes.
#pragma once

#include "piece_avx512.h"
#include "search.h"
#include "table_bits_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Where number_bytes has weight `i` of 64.
constexpr int place_in_numbers(int i) { return i % 16 * 4 + i / 16; }

// False if the layout is another one.
PHIQUANT_INLINE bool pack_codes(const EncodeTask& task, int64_t group, const int32_t* codes) {
  constexpr int kSelect = 0xCA;  // first ? second : third, bit by bit
  static constexpr Bytes kEvenFirst =
      bytes_of([](int i) { return place_in_numbers(i < 32 ? 2 * i : 2 * i - 63); });
  const Layout& layout = task.layout;
  const bool deviation = layout.deviation_bits == 4;
  if (layout.index_bits != 4 || layout.group_size < 64) return false;
  if (!deviation && layout.deviation_bits != 0) return false;
  const int64_t first = group * (layout.group_size / 2);
  const __m256i low_nibble = _mm256_set1_epi8(15);
  for (int at = 0; at < layout.group_size; at += 64) {
    const __m512i bytes =
        _mm512_permutexvar_epi8(vector_of(kEvenFirst), number_bytes<0>(codes + at, 4));
    const __m256i even = _mm512_castsi512_si256(bytes), odd = _mm512_extracti64x4_epi64(bytes, 1);
    const __m256i low =
        _mm256_ternarylogic_epi32(low_nibble, even, _mm256_slli_epi16(odd, 4), kSelect);
    const __m256i high =
        _mm256_ternarylogic_epi32(low_nibble, _mm256_srli_epi16(even, 4), odd, kSelect);
    store(task.index + first + at / 2, deviation ? high : low);
    if (deviation) store(task.deviation + first + at / 2, low);
  }
  return true;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
