// One row of int8 with 4-bit indices, where a matrix unit would mostly wait: 64 weights are a
// shift, a look-up, a dot product of bytes, and two instructions for their scale.
#pragma once

#include "amx_sums.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Dot products take one factor unsigned: levels are moved up by 128, which adds 128 times the sum
// of a group's x. Those sums follow x in its buffer.
inline constexpr int kUp = 128;

PHIQUANT_INLINE int64_t sums_bytes(const Layout& layout) {
  return (groups_of(layout) + 15) / 16 * 16 * int64_t{sizeof(float)};  // whole vectors
}

// -kUp times the sum of every group's 64 bytes of x; 0 beyond the last.
PHIQUANT_INLINE void sum_groups(const Layout& layout, const uint8_t* x, float* sums) {
  const __m512i ones = _mm512_set1_epi8(1);
  std::memset(sums, 0, static_cast<size_t>(sums_bytes(layout)));
  for (int64_t group = 0; group < groups_of(layout); group++) {
    const __m512i dots =
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_load_si512(x + group * kPiece));
    sums[group] = static_cast<float>(-kUp * _mm512_reduce_add_epi32(dots));
  }
}

struct RaisedLevels {
  alignas(64) uint8_t level[kBendCount][64];

  PHIQUANT_MEMBER explicit RaisedLevels(const Levels<Operand::kInt8>& levels) {
    for (int bend = 0; bend < kBendCount; bend++) {
      for (int i = 0; i < 64; i++) {
        level[bend][i] = static_cast<uint8_t>(levels.level[bend][i] + kUp);
      }
    }
  }
};

// One row of the weight; false if it has a bad scale word.
PHIQUANT_INLINE bool int8_row(const TileTask& task, const RaisedLevels& levels, int64_t row,
                              float* sum) {
  const __m512i upper_half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
  constexpr int kBytes = kPiece / 2, kFar = 2048, kChains = 4;
  const int64_t groups = groups_of(task.layout);
  const uint8_t* index = task.planes.index + row * groups * kBytes;
  const float* raised =
      reinterpret_cast<const float*>(task.x + rounded_groups(task.layout) * kPiece);
  Scales scales;
  vf total[kChains]{};
  bool good = true;
  for (int64_t start = 0; start < groups; start += kStretch) {
    const int64_t count = groups - start < kStretch ? groups - start : kStretch;
    good &= read_words(task.layout, task.planes.scale + row * groups + start, count, &scales);
    for (int64_t i = count; i % 16 != 0; i++) scales.scale[i] = 0;
    for (int64_t i = 0; i < count; i += 16) {
      total[i / 16] =
          multiply_add(load<vf>(scales.scale + i), load<vf>(raised + start + i), total[i / 16]);
    }
    for (int64_t i = 0; i < count; i++) {
      const uint8_t* from = index + (start + i) * kBytes;
      prefetch(from + kFar);
      const __m512i codes = _mm512_srlv_epi32(load_chunk<kPiece>(from), upper_half);
      const __m512i table = _mm512_load_si512(levels.level[scales.bend[i]]);
      const vi dots =
          (vi)_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_permutexvar_epi8(codes, table),
                                  _mm512_load_si512(task.x + (start + i) * kPiece));
      total[i % kChains] = multiply_add(to_float(dots), splat(scales.scale[i]), total[i % kChains]);
    }
  }
  *sum = _mm512_reduce_add_ps((total[0] + total[1]) + (total[2] + total[3]));
  return good;
}

static bool multiply_int8_row(const TileTask& task, int64_t begin, int64_t end) {
  const Levels<Operand::kInt8> levels(Curve::of(task.layout));
  const RaisedLevels raised(levels);
  bool good = true;
  alignas(64) float sums[kTileRows];
  for (int64_t row = begin; row < end; row += kTileRows) {
    const int64_t rows = end - row < kTileRows ? end - row : kTileRows;
    for (int64_t i = 0; i < rows; i++) good &= int8_row(task, raised, row + i, sums + i);
    store_sums<1>(sums, task.bias, task.factors, row, rows, 0, 1, task.out_features,
                  static_cast<uint16_t*>(task.out));
  }
  return good;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
