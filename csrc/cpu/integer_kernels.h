// Which product of integer_rows.h takes a task.
#pragma once

#include "integer_rows.h"

namespace phiquant::cpu::PHIQUANT_ISA {

static bool integer_takes(const Layout& layout, int64_t m, bool int8) {
  if (!has_nibbles(layout) || layout.group_size < kPiece || layout.exponent < -46) return false;
  return int8 ? layout.deviation_bits == 0 && m <= 16 : m == 1;
}

static int64_t integer_x_bytes(const Layout& layout, int64_t m, bool int8) {
  return m * integer_bytes(layout, int8);
}

static bool integer_prepare(const Layout& layout, const void* x, int64_t m, uint8_t* to,
                            float* factors) {
  static constexpr Order index = order_of<Operand::kIndex, 64>();
  static constexpr Order position = order_of<Operand::kPosition, 64>();
  static constexpr Order int8 = order_of<Operand::kInt8, 64>();
  const bool rounds = factors != nullptr;
  for (int64_t i = 0; i < m; i++, to += integer_bytes(layout, rounds)) {
    const auto* row = static_cast<const uint16_t*>(x) + i * layout.columns;
    if (rounds) {
      row_to_int8(layout, int8, row, to, factors + i);
    } else if (!row_to_int16(layout, layout.deviation_bits == 0 ? index : position, row, to)) {
      return false;
    }
  }
  return true;
}

// Sums of neighbouring 128 bits: those of x, then those of y.
PHIQUANT_INLINE __m512 fold(__m512 x, __m512 y) {
  return _mm512_shuffle_f32x4(x, y, 0x88) + _mm512_shuffle_f32x4(x, y, 0xDD);
}

// The sum of every one of 16 vectors, in 45 instructions.
PHIQUANT_INLINE vf totals(const vf parts[16]) {
  __m512 fours[4], halves[2];  // of four vectors the sums of every 128 bits; of eight, of 256
  for (int i = 0; i < 4; i++) {
    const __m512* p = parts + 4 * i;
    const __m512 ab = _mm512_unpacklo_ps(p[0], p[1]) + _mm512_unpackhi_ps(p[0], p[1]);
    const __m512 cd = _mm512_unpacklo_ps(p[2], p[3]) + _mm512_unpackhi_ps(p[2], p[3]);
    const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    fours[i] =
        _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)) + _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
  }
  for (int i = 0; i < 2; i++) halves[i] = fold(fours[2 * i], fours[2 * i + 1]);
  return fold(halves[0], halves[1]);
}

// The results of `count` rows of the weight, up to 16, with row i of x.
PHIQUANT_INLINE void leave(const CodeTask& task, int64_t i, int64_t row, int64_t count,
                           const vf parts[16]) {
  vf sums = totals(parts);
  if (task.factors != nullptr) sums *= task.factors[i];
  const __mmask16 given = static_cast<__mmask16>((1u << count) - 1);
  if (task.bias != nullptr) sums += (vf)_mm512_maskz_loadu_ps(given, task.bias + row);
  alignas(32) uint16_t bits[kLanes];
  floats_to_bfloat16s(bits, sums);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(task.out) + i * task.out_features + row, given,
                           _mm256_load_si256((const __m256i*)bits));
}

struct IntegerMultiply {
  const CodeTask& task;
  const IntegerTables& tables;
  int64_t begin, end;

  // Rows [from, to) of the weight, `rows` at a time, `step` apart, with `m` rows of x from `first`
  // on; one of the two is 1.
  template <Operand operand, int group_size, int rows, int m>
  PHIQUANT_MEMBER bool part(int64_t from, int64_t to, int64_t step, int64_t first) const {
    IntegerProduct<operand, group_size, rows, m> product(task, tables, first);
    vf sums[rows][m], parts[rows * m][kLanes];
    bool good = true;
    for (int64_t row = from; row < to; row += kLanes) {
      const int64_t count = to - row < kLanes ? to - row : kLanes;
      for (int64_t i = 0; i < count; i++) {
        good &= product.run(row + i, step, sums);
        for (int j = 0; j < rows * m; j++) parts[j][i] = sums[j / m][j % m];
      }
      for (int64_t i = count; i < kLanes; i++) {
        for (int j = 0; j < rows * m; j++) parts[j][i] = vf{};
      }
      for (int j = 0; j < rows * m; j++) {
        leave(task, first + j % m, row + j / m * step, count, parts[j]);
      }
    }
    return good;
  }

  template <Operand operand, int group_size>
  PHIQUANT_MEMBER bool run() const {
    constexpr int kRows = operand == Operand::kPosition ? kApart / 2 : kApart;  // of two planes
    const int64_t step = (end - begin) / kRows, rest = begin + kRows * step;
    int64_t first = 0;
    bool good = true;
    if constexpr (operand == Operand::kInt8) {
      for (; task.m - first >= kMost; first += kMost) {
        good &= part<operand, group_size, 1, kMost>(begin, end, 0, first);
      }
    }
    for (; first < task.m; first++) {
      good &= part<operand, group_size, kRows, 1>(begin, begin + step, step, first);
      good &= part<operand, group_size, 1, 1>(rest, end, 0, first);
    }
    return good;
  }

  template <Operand operand>
  PHIQUANT_MEMBER bool run() const {
    return task.layout.group_size == 64 ? run<operand, 64>() : run<operand, 128>();
  }
};

static Status integer_multiply(const CodeTask& task, int64_t begin, int64_t end) {
  const IntegerTables tables(task.layout);
  const IntegerMultiply multiply{task, tables, begin, end};
  const bool good = task.layout.deviation_bits != 0 ? multiply.run<Operand::kPosition>()
                    : task.factors != nullptr       ? multiply.run<Operand::kInt8>()
                                                    : multiply.run<Operand::kIndex>();
  return good ? Status::kOk : Status::kBadWord;
}

static constexpr CodeKernels kIntegerKernels{integer_takes, integer_x_bytes, integer_prepare,
                                             integer_multiply};

}  // namespace phiquant::cpu::PHIQUANT_ISA
