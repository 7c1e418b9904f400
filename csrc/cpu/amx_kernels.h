// Which product of amx_product.h takes a task.
#pragma once

#include "amx_decoded.h"
#include "amx_product.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// One row is faster in arithmetic that reads memory from end to end; for many, rows of the weight
// are better decoded first.
static bool takes(const Layout& layout, int64_t m, bool int8) {
  if (!has_nibbles(layout) || m < 2) return false;
  return int8 ? layout.deviation_bits == 0 && layout.group_size >= 64 : m <= 2 * kWidest;
}

// Groups of 64 are worth a variant for every width; others pad x to 16 rows.
PHIQUANT_INLINE int width_of(const Layout& layout, int64_t m) {
  return layout.group_size == 64 ? block_width(m) : kWidest;
}

static int64_t x_bytes(const Layout& layout, int64_t m, bool int8) {
  const int width = width_of(layout, m);
  return (m + width - 1) / width * steps_of(layout, int8) * kTileRows * width * 4;
}

struct Prepare {
  const Layout& layout;
  const uint16_t* x;
  int64_t m;
  uint8_t* to;
  float* factors;  // int8 if not null

  template <Operand operand, int group_size, int width>
  PHIQUANT_MEMBER bool run() const {
    static constexpr Order order = order_of<operand, group_size>();
    const int64_t columns = layout.columns;
    const int64_t size = steps_of(layout, factors != nullptr) * kTileRows * width * 4;
    uint8_t* block = to;
    for (int64_t first = 0; first < m; first += width, block += size) {
      const int64_t rows = m - first < width ? m - first : width;
      const int64_t pieces = (columns + kPiece - 1) / kPiece;
      const int64_t written = pieces * (factors == nullptr ? 2 : 1) * kTileRows * width * 4;
      if constexpr (operand == Operand::kInt8) {
        interleave_int8<width>(order, x + first * columns, rows, columns, block, factors + first);
      } else {
        interleave_pieces<width>(order, x + first * columns, rows, columns, block);
      }
      std::memset(block + written, 0, static_cast<size_t>(size - written));
    }
    return true;
  }
};

struct Multiply {
  const CodeTask& task;
  int64_t begin, end;

  template <Operand operand, int group_size, int width>
  PHIQUANT_MEMBER bool run() const {
    return multiply_rows<operand, group_size, width>(task, begin, end);
  }
};

template <Operand operand, class Action>
static bool for_layout(const Layout& layout, int64_t m, const Action& action) {
  if (layout.group_size == 128) return action.template run<operand, 128, kWidest>();
  if constexpr (operand != Operand::kInt8) {
    if (layout.group_size == 32) return action.template run<operand, 32, kWidest>();
  }
  switch (block_width(m)) {
    case 2:
      return action.template run<operand, 64, 2>();
    case 4:
      return action.template run<operand, 64, 4>();
    case 8:
      return action.template run<operand, 64, 8>();
    default:
      return action.template run<operand, 64, 16>();
  }
}

template <class Action>
static bool for_operand(const Layout& layout, int64_t m, bool int8, const Action& action) {
  if (layout.deviation_bits != 0) return for_layout<Operand::kPosition>(layout, m, action);
  return int8 ? for_layout<Operand::kInt8>(layout, m, action)
              : for_layout<Operand::kIndex>(layout, m, action);
}

static bool prepare_tiles(const Layout& layout, const void* x, int64_t m, uint8_t* to,
                          float* factors) {
  const Prepare prepare{layout, static_cast<const uint16_t*>(x), m, to, factors};
  return for_operand(layout, m, factors != nullptr, prepare);
}

static Status multiply(const CodeTask& task, int64_t begin, int64_t end) {
  const Multiply multiply{task, begin, end};
  const bool good = for_operand(task.layout, task.m, task.factors != nullptr, multiply);
  return good ? Status::kOk : Status::kBadWord;
}

static constexpr CodeKernels kTileKernels{takes, x_bytes, prepare_tiles, multiply};

}  // namespace phiquant::cpu::PHIQUANT_ISA
