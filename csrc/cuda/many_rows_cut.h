// How a product of many rows is cut into tiles and shared out, and how long that may take.
//
// A unit is one step of a tile. Units are numbered along the columns first, and every pair of
// blocks takes a share of them in a row: either whole tiles, or as many units as any other, so that
// all end together, but sums of tiles that several pairs have go through the L2 cache.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace phiquant::cuda {

inline constexpr int kPair = 2;          // blocks with the same rows of x, one tile above the other
inline constexpr int kPanelRows = 128;   // of the weight
inline constexpr int kStepColumns = 64;  // that are multiplied in one step
inline constexpr int kMostParts = 4;     // pairs a tile, on average

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t steps_of(const Layout& layout) { return ceil_div(layout.columns, kStepColumns); }

struct ManyCut {
  int wide;     // rows of x in a tile
  bool shared;  // whether pairs may share tiles

  int64_t wide_tiles(const ProductTask& task) const { return ceil_div(task.m, wide); }
  int64_t tiles(const ProductTask& task) const {
    return ceil_div(task.out_features, int64_t{kPanelRows} * kPair) * wide_tiles(task);
  }
  // What is given out: units, or all units of a tile at once.
  int64_t grain(const ProductTask& task) const { return shared ? 1 : steps_of(task.layout); }
  int64_t grains(const ProductTask& task) const {
    return tiles(task) * steps_of(task.layout) / grain(task);
  }
  int64_t pairs(const ProductTask& task, int multiprocessors) const {
    return std::min({int64_t{multiprocessors / kPair}, tiles(task) * kMostParts, grains(task)});
  }

  // From an H100: a step takes 0.55, 0.65, 0.75 or 0.85 us, with deviations 17% more; 4 us to begin
  // and end, 9 to 18 more for sums through the L2 cache.
  double microseconds(const ProductTask& task, int multiprocessors) const {
    const double part = wide / 256.0;
    const double step = (0.45 + 0.4 * part) * (task.layout.deviation_bits == 0 ? 1 : 1.17);
    const int64_t steps = ceil_div(grains(task), pairs(task, multiprocessors)) * grain(task);
    return (shared ? 10 + 12 * part : 4) + static_cast<double>(steps) * step;
  }
};

inline ManyCut best_cut(const ProductTask& task, int multiprocessors) {
  ManyCut best{256, false};
  for (const int wide : {256, 192, 128, 64}) {
    for (const bool shared : {false, true}) {
      const ManyCut cut{wide, shared};
      if (cut.microseconds(task, multiprocessors) < best.microseconds(task, multiprocessors)) {
        best = cut;
      }
    }
  }
  return best;
}

// What decoding to memory takes on an H100, 2.4 TB/s, and then cuBLAS: 2.7 TB/s or 790 TFLOP/s.
inline double decoded_microseconds(const ProductTask& task) {
  const Layout& layout = task.layout;
  const double weights =
      static_cast<double>(task.out_features) * static_cast<double>(layout.columns);
  const double bytes = 2 + (code_bits(layout) + 0.25) / 8;
  const double product =
      std::max(weights * 2 / 2.7e6, weights * 2e-6 * static_cast<double>(task.m) / 790);
  return 6 + weights * bytes / 2.4e6 + product;
}

}  // namespace phiquant::cuda
