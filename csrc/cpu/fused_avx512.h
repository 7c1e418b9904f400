// x . weight^T for few rows of x, weights unpacked in registers.
#pragma once

#include "apart.h"
#include "fused.h"
#include "fused_group_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Below such scales the scaled cubic's coefficient could vanish.
PHIQUANT_INLINE bool has_fast_fused(const Layout& layout) {
  return has_nibble_indices(layout) && layout.exponent >= -46;
}

static int64_t fast_fused_rows(const Layout& layout) {
  return has_fast_fused(layout) ? 16 : fused_rows(layout);
}

struct FusedTables {
  Curve curve;
  IndexLevels levels;
  int64_t padded;  // from a row of x to the next
  int64_t ahead;   // bytes of indices from a group to one that is needed later
};

// The same groups of a later row: a core that only waits for what it needs next reads a third
// slower.
PHIQUANT_INLINE int64_t bytes_ahead(const Layout& layout) {
  constexpr int64_t kFar = 2048;
  const int64_t row = row_bytes(layout, 4);
  return (kFar + row - 1) / row * row;
}

static void fast_prepare(const Layout& layout, Dtype dtype, const void* x, int64_t m,
                         float* prepared) {
  prepare(layout, dtype, x, m, prepared);
  if (!has_fast_fused(layout) || layout.deviation_bits != 0) return;
  const int64_t count = m * groups_of(layout) * layout.group_size;
  layout.group_size == 32 ? reorder<32>(prepared, count) : reorder<64>(prepared, count);
}

// Rows of the weight that share a block of x while it is in the L1 cache.
inline constexpr int kTile = 16;
inline constexpr int kBlockFloats = 6144;  // of x

// Rows of the weight, `step` apart, and where a stretch of their groups begins.
struct Stretch {
  int64_t row, step, start, count;
};

// A stretch of so many rows of the weight, against m rows of x.
template <int deviation_bits, int group_size, int m, int rows>
PHIQUANT_INLINE bool add_stretch(const FusedTask& task, const FusedTables& tables,
                                 const Stretch& stretch, const float* x, Sums<m>* totals) {
  PlanesAt<deviation_bits> codes[rows];
  Scales scales[rows];
  Slopes slopes[deviation_bits == 0 ? 1 : rows];
  Sums<m> sums[rows];
  bool good = true;
  for (int r = 0; r < rows; r++) {
    const int64_t row = stretch.row + r * stretch.step;
    const int64_t before = row * groups_of(task.layout) + stretch.start;
    codes[r] = {task.planes, before * group_size};
    good &= read_words(task.layout, task.planes.scale + before, stretch.count, &scales[r]);
    if (deviation_bits != 0) {
      slopes[r].template set<deviation_bits>(tables.curve, scales[r], stretch.count);
    }
    sums[r] = totals[r];
  }
  for (int64_t i = 0; i < stretch.count; i++) {
    for (int r = 0; r < rows; r++) {
      const PlanesAt<deviation_bits> group = codes[r].after(i * group_size);
      if (rows == 1) group.ask_for(tables.ahead);
      if constexpr (deviation_bits == 0) {
        const vf levels = load<vf>(tables.levels.level[scales[r].bend[i]]) * scales[r].scale[i];
        add_indices<group_size, m>(group.index, levels, x, tables.padded, &sums[r]);
      } else {
        add_positions<deviation_bits, group_size, m>(
            group, splat(slopes[r].line[i]), splat(slopes[r].cubic[i]), x, tables.padded, &sums[r]);
      }
    }
    x += group_size;
  }
  for (int r = 0; r < rows; r++) totals[r] = sums[r];
  return good;
}

template <int m>
PHIQUANT_INLINE void store_sums(const FusedTask& task, int64_t first, int64_t row,
                                const Sums<m>& sums) {
  for (int j = 0; j < m; j++) {
    vf sum{};
    for (const vf& chain : sums.sum[j]) sum += chain;
    store_sum(task, first + j, row, total(sum));
  }
}

// Up to kTile rows of the weight from `row` on, against m rows of x from `first` on.
template <int deviation_bits, int group_size, int m>
static bool fast_tile(const FusedTask& task, const FusedTables& tables, int64_t first, int64_t row,
                      int64_t rows) {
  constexpr int64_t kMost = kBlockFloats / (group_size * m);
  constexpr int64_t kGroups = kMost < kStretch ? kMost : kStretch;
  const int64_t groups = groups_of(task.layout);
  Sums<m> sums[kTile];
  bool good = true;
  for (int64_t start = 0; start < groups; start += kGroups) {
    const int64_t count = groups - start < kGroups ? groups - start : kGroups;
    const float* x = task.x + first * tables.padded + start * group_size;
    for (int64_t i = 0; i < rows; i++) {
      good &= add_stretch<deviation_bits, group_size, m, 1>(
          task, tables, {row + i, 0, start, count}, x, &sums[i]);
    }
  }
  for (int64_t i = 0; i < rows; i++) store_sums(task, first, row + i, sums[i]);
  return good;
}

// So many rows of the weight, `step` apart, against one row of x.
template <int deviation_bits, int group_size, int rows>
PHIQUANT_INLINE bool rows_apart(const FusedTask& task, const FusedTables& tables, int64_t row,
                                int64_t step) {
  const int64_t groups = groups_of(task.layout);
  Sums<1> sums[rows];
  bool good = true;
  for (int64_t start = 0; start < groups; start += kStretch) {
    const int64_t count = groups - start < kStretch ? groups - start : kStretch;
    good &= add_stretch<deviation_bits, group_size, 1, rows>(
        task, tables, {row, step, start, count}, task.x + start * group_size, sums);
  }
  for (int r = 0; r < rows; r++) store_sums(task, 0, row + r * step, sums[r]);
  return good;
}

template <int deviation_bits, int group_size>
static bool one_row(const FusedTask& task, const FusedTables& tables, int64_t begin, int64_t end) {
  const int64_t step = (end - begin) / kApart;
  bool good = true;
  for (int64_t i = 0; i < step; i++) {
    good &= rows_apart<deviation_bits, group_size, kApart>(task, tables, begin + i, step);
  }
  for (int64_t row = begin + kApart * step; row < end; row++) {
    good &= rows_apart<deviation_bits, group_size, 1>(task, tables, row, 0);
  }
  return good;
}

// At most eight rows of x at a time: all that are left, so that codes are unpacked for them once.
template <int deviation_bits, int group_size, int m = kMostRows>
static bool few_rows(const FusedTask& task, const FusedTables& tables, int64_t first, int64_t row,
                     int64_t rows) {
  if constexpr (m > 1) {
    if (task.m - first < m) {
      return few_rows<deviation_bits, group_size, m - 1>(task, tables, first, row, rows);
    }
  }
  return fast_tile<deviation_bits, group_size, m>(task, tables, first, row, rows);
}

template <int deviation_bits, int group_size>
static bool fast_rows(const FusedTask& task, const FusedTables& tables, int64_t begin,
                      int64_t end) {
  if (task.m == 1) return one_row<deviation_bits, group_size>(task, tables, begin, end);
  bool good = true;
  for (int64_t row = begin; row < end; row += kTile) {
    const int64_t rows = end - row < kTile ? end - row : kTile;
    for (int64_t first = 0; first < task.m; first += kMostRows) {
      good &= few_rows<deviation_bits, group_size>(task, tables, first, row, rows);
    }
  }
  return good;
}

template <int deviation_bits>
static bool fast_rows(const FusedTask& task, const FusedTables& tables, int64_t begin,
                      int64_t end) {
  switch (task.layout.group_size) {
    case 32:
      return fast_rows<deviation_bits, 32>(task, tables, begin, end);
    case 64:
      return fast_rows<deviation_bits, 64>(task, tables, begin, end);
    default:
      return fast_rows<deviation_bits, 128>(task, tables, begin, end);
  }
}

static Status fast_fused(const FusedTask& task, int64_t begin, int64_t end) {
  if (!has_fast_fused(task.layout)) return fused(task, begin, end);
  const Curve curve = Curve::of(task.layout);
  const FusedTables tables{curve, IndexLevels(curve),
                           groups_of(task.layout) * task.layout.group_size,
                           bytes_ahead(task.layout)};
  bool good = true;
  switch (task.layout.deviation_bits) {
    case 0:
      good = fast_rows<0>(task, tables, begin, end);
      break;
    case 2:
      good = fast_rows<2>(task, tables, begin, end);
      break;
    case 4:
      good = fast_rows<4>(task, tables, begin, end);
      break;
    default:
      good = fast_rows<8>(task, tables, begin, end);
  }
  return good ? Status::kOk : Status::kBadWord;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
