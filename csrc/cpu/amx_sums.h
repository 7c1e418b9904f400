// Sums of a block of 16 rows of weights with a block of rows of x: [16][width] fp32, as a tile has
// them; their scales; and how they leave.
#pragma once

#include "amx_rows.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kGroups = 16;  // whose scale words are read at once

// The scale words of up to 16 rows by up to 16 groups.
struct BlockScales {
  alignas(64) float scale[kGroups][kTileRows];     // group by group
  alignas(64) uint32_t table[kTileRows][kGroups];  // row by row: where a bend's table begins
};

// Rows of 16 dwords turned into columns.
PHIQUANT_INLINE void transpose(__m512 rows[16]) {
  __m512 pairs[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  __m512d fours[16];
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; j++) {
      const __m512d a = _mm512_castps_pd(pairs[i + j]), b = _mm512_castps_pd(pairs[i + j + 2]);
      fours[i + 2 * j] = _mm512_unpacklo_pd(a, b);
      fours[i + 2 * j + 1] = _mm512_unpackhi_pd(a, b);
    }
  }
  // fours[4 q + j], 128-bit lane l: rows 4 q .. 4 q + 3 of column 4 l + j.
  for (int j = 0; j < 4; j++) {
    const __m512 a = _mm512_castpd_ps(fours[j]), b = _mm512_castpd_ps(fours[4 + j]);
    const __m512 c = _mm512_castpd_ps(fours[8 + j]), d = _mm512_castpd_ps(fours[12 + j]);
    const __m512 ab_even = _mm512_shuffle_f32x4(a, b, 0x88),
                 ab_odd = _mm512_shuffle_f32x4(a, b, 0xDD);
    const __m512 cd_even = _mm512_shuffle_f32x4(c, d, 0x88),
                 cd_odd = _mm512_shuffle_f32x4(c, d, 0xDD);
    rows[j] = _mm512_shuffle_f32x4(ab_even, cd_even, 0x88);
    rows[8 + j] = _mm512_shuffle_f32x4(ab_even, cd_even, 0xDD);
    rows[4 + j] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0x88);
    rows[12 + j] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0xDD);
  }
}

// Words of `count` groups of `rows` rows, `stride` groups apart; false if one is no scale word.
PHIQUANT_INLINE bool read_block_scales(const Layout& layout, const int16_t* words, int64_t stride,
                                       int64_t rows, int64_t count, int table_bytes,
                                       BlockScales* out) {
  const __mmask16 given = static_cast<__mmask16>((1u << count) - 1);
  const vf unit = splat(power_of_two(layout.exponent));
  const __m256i one = _mm256_set1_epi16(0x3C00);
  __m512 scales[kTileRows];
  vi bad{};
  for (int64_t i = 0; i < kTileRows; i++) {
    const __m256i some = i < rows ? _mm256_mask_loadu_epi16(one, given, words + i * stride) : one;
    const vi bits = (vi)_mm512_cvtepu16_epi32(some);
    const vi bend = bits & static_cast<int32_t>(kBendMask), exponent = bits & 0x7C00;
    bad |= (exponent == 0) | (exponent == 0x7C00);
    const vi magnitude = ((bits & 0x7FF8) << kWordShift) + static_cast<int32_t>(kWordBias);
    scales[i] = (vf)(magnitude | (bits & 0x8000) << 16) * unit;
    store(out->table[i], bend * table_bytes);
  }
  transpose(scales);
  // Groups beyond the last meet columns of x that are 0, and weights that are whatever was there.
  for (int i = 0; i < kGroups; i++) store(out->scale[i], i < count ? (vf)scales[i] : vf{});
  return !any(bad);
}

// Sums of one block of x.
template <int width>
struct Sums {
  vf part[width];  // 16 of the [16][width] sums each

  template <bool integers>
  PHIQUANT_MEMBER void add(const float* tile, const float* scale) {
    for (int i = 0; i < width; i++) {
      const vf sum = integers ? to_float(load<vi>(tile + 16 * i)) : load<vf>(tile + 16 * i);
      part[i] = multiply_add(sum, spread(scale, i), part[i]);
    }
  }
  // The scales of the rows that part i belongs to.
  static PHIQUANT_MEMBER vf spread(const float* scale, int i) {
    if (width == 16) return splat(scale[i]);
    alignas(64) int32_t rows[16];
    for (int lane = 0; lane < 16; lane++) rows[lane] = (16 * i + lane) / width;
    return _mm512_permutexvar_ps(_mm512_load_si512(rows), load<vf>(scale));
  }
};

// sums[row][i] of `rows` rows from `row` on, times factors[i], plus the bias, rounded to bf16, to
// out[first + i, row].
template <int width>
PHIQUANT_INLINE void store_sums(const float* sums, const float* bias, const float* factors,
                                int64_t row, int64_t rows, int64_t first, int64_t count,
                                int64_t out_features, uint16_t* out) {
  alignas(64) int32_t places[16];
  for (int i = 0; i < 16; i++) places[i] = i * width;
  const __m512i place = _mm512_load_si512(places);
  const __mmask16 given = static_cast<__mmask16>((1u << rows) - 1);
  const __m512 extra = bias == nullptr ? __m512{} : _mm512_maskz_loadu_ps(given, bias + row);
  for (int64_t i = 0; i < count; i++) {
    const vf gathered = (vf)_mm512_i32gather_ps(place, sums + i, 4);
    const vf sum = (factors == nullptr ? gathered : gathered * factors[i]) + extra;
    const vi bits = (vi)sum, nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    const vi rounded = (vi)((vu)(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    const vi kept = nan ? ((bits >> 16) & 0xFFFF) | 0x40 : rounded;
    _mm256_mask_storeu_epi16(out + (first + i) * out_features + row, given,
                             _mm512_cvtepi32_epi16((__m512i)kept));
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
