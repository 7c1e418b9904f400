// The next bits of sixteen lanes at once: a prefix sum of the widths, then one byte permutation.
#pragma once

#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Lanes summed up to and including each.
PHIQUANT_INLINE __m512i prefix_sum(__m512i value) {
  const __m512i zero = _mm512_setzero_si512();
  value = _mm512_add_epi32(value, _mm512_alignr_epi32(value, zero, 15));
  value = _mm512_add_epi32(value, _mm512_alignr_epi32(value, zero, 14));
  value = _mm512_add_epi32(value, _mm512_alignr_epi32(value, zero, 12));
  return _mm512_add_epi32(value, _mm512_alignr_epi32(value, zero, 8));
}

// Sixteen widths of at most 15 bits (31 in fp32) after a bit of the first byte: all in 64 bytes.
template <Dtype stored, class Reader>
PHIQUANT_INLINE vi fast_take_bits(Reader* reader, vi width) {
  const __m512i every_byte = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0x00000000);
  const __m512i next_bytes = _mm512_set1_epi32(0x03020100);
  const __m512i bytes = _mm512_loadu_si512(reader->bytes + (reader->bit >> 3));
  const __m512i widths = (__m512i)width, sums = prefix_sum(widths);
  const __m512i place = _mm512_add_epi32(_mm512_sub_epi32(sums, widths),
                                         _mm512_set1_epi32(static_cast<int>(reader->bit & 7)));
  const __m512i from =
      _mm512_add_epi8(_mm512_shuffle_epi8(_mm512_srli_epi32(place, 3), every_byte), next_bytes);
  const __m512i shift = _mm512_and_si512(place, _mm512_set1_epi32(7));
  __m512i words = _mm512_srlv_epi32(_mm512_permutexvar_epi8(from, bytes), shift);
  if (stored == Dtype::kFloat32) {
    const __m512i more = _mm512_permutexvar_epi8(_mm512_add_epi8(from, _mm512_set1_epi8(4)), bytes);
    const __m512i left = _mm512_sub_epi32(_mm512_set1_epi32(32), shift);
    words = _mm512_or_si512(words, _mm512_sllv_epi32(more, left));
  }
  reader->bit += _mm_extract_epi32(_mm512_extracti32x4_epi32(sums, 3), 3);
  const __m512i above = _mm512_sllv_epi32(_mm512_set1_epi32(-1), widths);
  return (vi)_mm512_andnot_si512(above, words);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
