// How a product of many rows is cut into tiles, and how long that may take.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace phiquant::cuda {

inline constexpr int kPair = 2;          // blocks with the same rows of x, one tile above the other
inline constexpr int kTileRows = 128;    // of the weight
inline constexpr int kStepColumns = 64;  // that are multiplied in one step

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t steps_of(const Layout& layout) { return ceil_div(layout.columns, kStepColumns); }

// Rows of x in a tile, and whether two pairs of blocks share its steps.
struct Cut {
  int wide;
  bool split;

  int blocks() const { return split ? 2 * kPair : kPair; }  // of a cluster
  int64_t wide_tiles(const ProductTask& task) const { return ceil_div(task.m, wide); }
  int64_t tiles(const ProductTask& task) const {
    return ceil_div(task.out_features, int64_t{kTileRows} * kPair) * wide_tiles(task);
  }

  // Clusters that run side by side; those of four may leave multiprocessors without three others.
  int64_t at_once(int multiprocessors) const {
    return split ? (multiprocessors - 4) / 4 : multiprocessors / kPair;
  }
  bool suits(const ProductTask& task, int multiprocessors) const {
    return !split || (steps_of(task.layout) >= 16 && tiles(task) <= at_once(multiprocessors));
  }

  // From an H100: a step takes 0.75, 0.81 or 0.9 us, with deviations 15% more; 4 us to begin and
  // end, 2 to exchange sums.
  double microseconds(const ProductTask& task, int multiprocessors) const {
    const double step = 0.6 + 0.3 * wide / 256.0;
    const double each = task.layout.deviation_bits == 0 ? step : step * 1.15;
    const int64_t steps = steps_of(task.layout),
                  rounds = ceil_div(tiles(task), at_once(multiprocessors));
    return split ? 6 + static_cast<double>(ceil_div(steps, 2)) * each
                 : 4 + static_cast<double>(rounds * steps) * each;
  }
};

inline Cut best_cut(const ProductTask& task, int multiprocessors) {
  Cut best{256, false};
  for (const Cut cut : {Cut{192, false}, Cut{128, false}, Cut{256, true}, Cut{128, true}}) {
    if (cut.suits(task, multiprocessors) &&
        cut.microseconds(task, multiprocessors) < best.microseconds(task, multiprocessors)) {
      best = cut;
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
