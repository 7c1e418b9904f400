// One group of 4-bit indices, with or without deviations, against rows of x in fp32.
#pragma once

#include "positions_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// The coefficients of a stretch of groups, scale and the step of positions included.
struct Slopes {
  alignas(64) float line[kStretch];
  alignas(64) float cubic[kStretch];

  template <int deviation_bits>
  PHIQUANT_MEMBER void set(const Curve& curve, const Scales& scales, int64_t count) {
    constexpr float kStep = 1.0f / (1 << deviation_bits);
    const __m512 lines = _mm512_castps256_ps512(_mm256_load_ps(curve.line));
    const __m512 cubics = _mm512_castps256_ps512(_mm256_load_ps(curve.cubic));
    for (int i = 0; i < count; i += kLanes) {
      const __m512i bend = _mm512_load_si512(scales.bend + i);
      const vf scale = load<vf>(scales.scale + i);
      store(line + i, (vf)_mm512_permutexvar_ps(bend, lines) * kStep * scale);
      store(cubic + i, (vf)_mm512_permutexvar_ps(bend, cubics) * (kStep * kStep * kStep) * scale);
    }
  }
};

template <int m>
struct Sums {
  static constexpr int kChains = m == 1 ? 4 : m == 2 ? 2 : 1;  // hide the latency of a sum
  vf sum[m][kChains]{};
};

// Without deviations a dword of codes is 8 weights, and a vector of weights takes the same nibble
// of every dword: `right`, how far it is moved right in each lane. A look-up reads 4 bits, so
// nothing is masked: for 16 weights a shift, a look-up and an addition. Lanes beyond the dwords
// take the next nibbles of the same ones.
template <int chunk>
struct NibbleOrder {
  static constexpr int kDwords = chunk / 8, kTurns = 16 / kDwords;

  static constexpr int nibble(int step, int lane) { return step * kTurns + lane / kDwords; }
  static constexpr int weight(int step, int lane) {
    return lane % kDwords * 8 + nibble(step, lane);
  }
};

template <int chunk>
struct Shifts {
  alignas(64) int32_t right[chunk / 16][16];
};
template <int chunk>
constexpr Shifts<chunk> shifts_for() {
  Shifts<chunk> shifts{};
  for (int i = 0; i < chunk; i++) {
    shifts.right[i / 16][i % 16] = 4 * NibbleOrder<chunk>::nibble(i / 16, i % 16);
  }
  return shifts;
}
template <int chunk>
static constexpr Shifts<chunk> kShifts = shifts_for<chunk>();

// Rows of x in that order.
template <int chunk>
PHIQUANT_INLINE void reorder(float* x, int64_t count) {
  alignas(64) float natural[chunk];
  for (int64_t at = 0; at < count; at += chunk) {
    std::memcpy(natural, x + at, sizeof natural);
    for (int i = 0; i < chunk; i++) {
      x[at + i] = natural[NibbleOrder<chunk>::weight(i / 16, i % 16)];
    }
  }
}

// One group of 4-bit indices: a look-up in the bend's levels.
template <int group_size, int m>
PHIQUANT_INLINE void add_indices(const uint8_t* index, vf levels, const float* x, int64_t padded,
                                 Sums<m>* sums) {
  constexpr int kChunk = group_size < 64 ? group_size : 64;
  for (int start = 0; start < group_size; start += kChunk) {
    const __m512i dwords = load_chunk<kChunk>(index + start / 2);
    for (int step = 0; step < kChunk / 16; step++) {
      const __m512i right = _mm512_load_si512(kShifts<kChunk>.right[step]);
      const vf weight = _mm512_permutexvar_ps(_mm512_srlv_epi32(dwords, right), levels);
      for (int i = 0; i < m; i++) {
        vf& sum = sums->sum[i][step % Sums<m>::kChains];
        sum = multiply_add(weight, load<vf>(x + start + step * 16 + i * padded), sum);
      }
    }
  }
}

// One group with deviations: the cubic.
template <int deviation_bits, int group_size, int m>
PHIQUANT_INLINE void add_positions(const PlanesAt<deviation_bits>& group, vf line, vf cubic,
                                   const float* x, int64_t padded, Sums<m>* sums) {
  constexpr int kChunk = group_size < 64 ? group_size : 64;
  for (int start = 0; start < group_size; start += kChunk) {
    const PlanesAt<deviation_bits> from = group.after(start);
    const Positions<deviation_bits, kChunk> positions(from);
    for (int step = 0; step < kChunk / 16; step++) {
      const vf p = positions.at(step);
      const vf slope = multiply_add(p * p, cubic, line);
      const vf weight = slope * p;
      for (int i = 0; i < m; i++) {
        const vf factor = load<vf>(x + start + step * 16 + i * padded);
        vf& sum = sums->sum[i][step % Sums<m>::kChains];
        // With one row, p * factor does not wait for the slope.
        sum = m == 1 ? multiply_add(slope, factor * p, sum) : multiply_add(weight, factor, sum);
      }
    }
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
