// What decoding and encoding of remainders share: a row's groups, and the sub-cells of each.
#pragma once

#include "decode.h"
#include "subcells.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// One group's place in the planes, and its scale.
struct ExactGroup {
  int64_t group;   // counted through all rows
  int64_t column;  // of its first weight
  int32_t count;   // weights, without the pad
  float scale;     // signed
  int32_t bend;
};

PHIQUANT_INLINE vi join_codes(const Layout& layout, const Codes& codes, int at) {
  vi code = widen(codes.index + at) << high_bits(layout) | widen(codes.high + at);
  return layout.deviation_bits == 8 ? code << 4 | widen(codes.low + at) : code;
}

// use(at, sides, sub-cells, bits of each remainder) for every vector of a group; no bits beyond its
// count. `table`: the golden grid's edges, null for the phi-grid.
template <Dtype stored, class Use>
PHIQUANT_INLINE void for_subcells(const Layout& layout, const Planes& planes, const float* table,
                                  const Curve& curve, const ExactGroup& group, Use use) {
  Codes codes;
  read_codes(layout, planes, group.group, &codes);
  const Steps steps = Steps::of(layout, curve.line[group.bend], curve.cubic[group.bend]);
  const float scale = __builtin_fabsf(group.scale);
  for (int at = 0; at < group.count; at += kLanes) {
    const Sides sides = sides_of(layout, join_codes(layout, codes, at));
    const Subcells cells = table == nullptr ? phi_subcells<stored>(steps, sides, scale)
                                            : golden_subcells<stored>(layout, sides, table, scale);
    use(at, sides, cells, bit_length(cells.spare) & (lane_numbers() + at < group.count));
  }
}

// visit(group) for the groups of one row, until one returns another status than kOk.
template <class Visit>
PHIQUANT_INLINE Status for_groups(const Layout& layout, const Planes& planes, int64_t row,
                                  Visit visit) {
  const int64_t groups = groups_of(layout);
  Scales scales;
  for (int64_t start = 0; start < groups; start += kStretch) {
    const int64_t count = groups - start < kStretch ? groups - start : kStretch;
    const int16_t* words = planes.scale + row * groups + start;
    if (!read_words(layout, words, count, &scales)) return Status::kBadWord;
    for (int64_t i = 0; i < count; i++) {
      const int64_t column = (start + i) * layout.group_size, rest = layout.columns - column;
      const int64_t size = rest < layout.group_size ? rest : layout.group_size;
      const Status status =
          visit(ExactGroup{row * groups + start + i, column, static_cast<int32_t>(size),
                           scales.scale[i], scales.bend[i]});
      if (status != Status::kOk) return status;
    }
  }
  return Status::kOk;
}

PHIQUANT_INLINE bool begins_block(const ExactGroup& group) { return group.column % kBlock == 0; }

}  // namespace phiquant::cpu::PHIQUANT_ISA
