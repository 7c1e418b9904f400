// How a block of the product is laid out, for 8 * eights rows of x.
#pragma once

#include "few_rows.cuh"

namespace phiquant::cuda {

template <int deviation, int eights>
struct FewShape {
  static constexpr int kRows = 8 * eights;  // of x
  // Tiles of 16 rows that a warp takes: two share what they read of x, but need more registers.
  static constexpr int kTall = eights > 4 ? 2 : 1;
  static constexpr int kWarps = kUnitRows / (16 * kTall);  // that multiply; one more fills the ring
  static constexpr int kThreads = (kWarps + 1) * 32;

  // A stage of the ring: planes, x.
  static constexpr int kIndexBytes = kUnitRows * kUnitGroups * 32;
  static constexpr int kHighRow = kUnitGroups * 8 * deviation;
  static constexpr int kHighBytes = kUnitRows * kHighRow;
  static constexpr int kXBytes = kUnitGroups * eights * kFragment;
  static constexpr int kStageBytes = kIndexBytes + kHighBytes + kXBytes;

  // A block has a multiprocessor for itself, but for some KB to let few_rows_x run beside it.
  static constexpr int kMostBytes = 218 * 1024;
  static constexpr int kFit = (kMostBytes - 1024) / kStageBytes;
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kBytes = kStages * kStageBytes + 1024;  // to be aligned
};

}  // namespace phiquant::cuda
