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

PHIQUANT_INLINE void leave(const CodeTask& task, int64_t i, int64_t row, vf sums) {
  float sum = total(sums);
  if (task.factors != nullptr) sum *= task.factors[i];
  if (task.bias != nullptr) sum += task.bias[row];
  alignas(64) uint16_t bits[kLanes];
  floats_to_bfloat16s(bits, splat(sum));
  static_cast<uint16_t*>(task.out)[i * task.out_features + row] = bits[0];
}

struct IntegerMultiply {
  const CodeTask& task;
  const IntegerTables& tables;
  int64_t begin, end;

  // One row of x.
  template <Operand operand, int group_size, int rows>
  PHIQUANT_MEMBER bool apart(int64_t from, int64_t to, int64_t step, int64_t first) const {
    IntegerProduct<operand, group_size, rows, 1> product(task, tables, first);
    vf sums[rows][1];
    bool good = true;
    for (int64_t row = from; row < to; row++) {
      good &= product.run(row, step, sums);
      for (int r = 0; r < rows; r++) leave(task, first, row + r * step, sums[r][0]);
    }
    return good;
  }

  // kMost rows of x.
  template <Operand operand, int group_size>
  PHIQUANT_MEMBER bool together(int64_t first) const {
    IntegerProduct<operand, group_size, 1, kMost> product(task, tables, first);
    vf sums[1][kMost];
    bool good = true;
    for (int64_t row = begin; row < end; row++) {
      good &= product.run(row, 0, sums);
      for (int j = 0; j < kMost; j++) leave(task, first + j, row, sums[0][j]);
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
      for (; task.m - first >= kMost; first += kMost) good &= together<operand, group_size>(first);
    }
    for (; first < task.m; first++) {
      good &= apart<operand, group_size, kRows>(begin, begin + step, step, first);
      good &= apart<operand, group_size, 1>(rest, end, 0, first);
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
