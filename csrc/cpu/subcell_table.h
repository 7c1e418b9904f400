// The sub-cells of bf16 weights with 4 index and 4 deviation bits on the phi-grid, in tables: there
// are but 1024 of them. A scale is a bf16 number, and a power of two on it adds the same to the
// rank of every edge, so that the bend and the scale's 7 mantissa bits say all but the sub-cell at
// zero, which is as wide as its upper edge's rank.
#pragma once

#include "subcells.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kSubcellTables = kBendCount << 7;
inline constexpr int kSharedNumbers = 120;  // numbers that both sides of zero have
inline constexpr int kTableExponent = 134;  // of the scales of tables, biased: 2^7
// Scales of exponents from here to there have normal edges, and 14 bits at zero: from 2^13 on and
// below 2^14 is the rank of every float from 2^-63 on and below 2, as the first edge is.
inline constexpr int kLeastExponent = 127 - 52;
inline constexpr int kZeroWidth = 14;

// By a sub-cell's number. Those of numbers from 128 on are in the second parts.
struct SubcellTable {
  struct Column {
    alignas(64) uint8_t of[128];
  };
  struct Tail {
    uint8_t of[16];
  };
  Column low, high;  // bytes of the first rank; 0 at zero
  Column width;      // bits
  Column spare;      // how many floats follow the first; 255 at zero
  Tail low_tail, high_tail, width_tail, spare_tail;
};

PHIQUANT_INLINE void set_subcell(SubcellTable* table, int number, int first, int spare, int width) {
  const auto set = [&](SubcellTable::Column* column, SubcellTable::Tail* tail, int value) {
    (number < 128 ? column->of[number] : tail->of[number - 128]) = static_cast<uint8_t>(value);
  };
  set(&table->low, &table->low_tail, first);
  set(&table->high, &table->high_tail, first >> 8);
  set(&table->width, &table->width_tail, number == 0 ? kZeroWidth : width);
  set(&table->spare, &table->spare_tail, number == 0 ? 255 : spare);
}

// Of a scale's size, on one side of zero.
static SubcellTable make_table(const Steps& steps, float scale, bool below) {
  SubcellTable table{};
  for (int start = 0; start < 144; start += kLanes) {
    const vi number = lane_numbers() + start;
    const vi side = below ? number < kSharedNumbers : vi{};
    const Subcells cells =
        phi_subcells<Dtype::kBFloat16>(steps, {number, side, number == 135}, scale);
    const vi width = bit_length(cells.spare);
    for (int i = 0; i < kLanes; i++) {
      set_subcell(&table, start + i, cells.first[i], cells.spare[i], width[i]);
    }
  }
  return table;
}

// All tables. Where an edge is a bf16 number the sides differ, since a sub-cell holds its lower
// edge: these tables, less than 3 in 100, have a second one for below zero.
struct SubcellTables {
  static constexpr int kMostSecond = 64;
  uint16_t second[kSubcellTables];  // its place, or 0
  SubcellTable table[kSubcellTables + kMostSecond];

  SubcellTables() {
    const Layout layout{kLargestGroup, 4, 4, kLargestGroup, GridName::kPhi, 0};
    const Curve curve = Curve::of(layout);
    int count = kSubcellTables;
    for (int i = 0; i < kSubcellTables; i++) {
      const Steps steps = Steps::of(layout, curve.line[i >> 7], curve.cubic[i >> 7]);
      const float scale =
          power_of_two(kTableExponent - 127) * (1 + static_cast<float>(i & 127) / 128);
      table[i] = make_table(steps, scale, false);
      const SubcellTable below = make_table(steps, scale, true);
      second[i] = 0;
      if (std::memcmp(&below, &table[i], sizeof below) == 0) continue;
      second[i] = static_cast<uint16_t>(count);
      table[count++] = below;
    }
  }
};

// Made when first asked for.
static const SubcellTables& subcell_tables() {
  static const SubcellTables tables;
  return tables;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
