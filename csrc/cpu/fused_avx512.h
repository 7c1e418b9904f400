// x . weight^T for few rows of x, weights unpacked in registers.
#pragma once

#include "apart.h"
#include "fused.h"
#include "positions_avx512.h"

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

static void fast_prepare(const Layout& layout, Dtype dtype, const void* x, int64_t m,
                         float* prepared) {
  prepare(layout, dtype, x, m, prepared);
  if (!has_fast_fused(layout) || layout.deviation_bits != 0) return;
  const int64_t count = m * groups_of(layout) * layout.group_size;
  layout.group_size == 32 ? reorder<32>(prepared, count) : reorder<64>(prepared, count);
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

template <int deviation_bits, int group_size>
static bool few_rows(const FusedTask& task, const FusedTables& tables, int64_t row, int64_t rows) {
  bool good = true;
  int64_t first = 0;
  for (; task.m - first >= 8; first += 8) {
    good &= fast_tile<deviation_bits, group_size, 8>(task, tables, first, row, rows);
  }
  if (task.m - first >= 4) {
    good &= fast_tile<deviation_bits, group_size, 4>(task, tables, first, row, rows);
    first += 4;
  }
  if (task.m - first >= 2) {
    good &= fast_tile<deviation_bits, group_size, 2>(task, tables, first, row, rows);
    first += 2;
  }
  if (task.m == first) return good;
  return good & fast_tile<deviation_bits, group_size, 1>(task, tables, first, row, rows);
}

template <int deviation_bits, int group_size>
static bool fast_rows(const FusedTask& task, const FusedTables& tables, int64_t begin,
                      int64_t end) {
  if (task.m == 1) return one_row<deviation_bits, group_size>(task, tables, begin, end);
  bool good = true;
  for (int64_t row = begin; row < end; row += kTile) {
    const int64_t rows = end - row < kTile ? end - row : kTile;
    good &= few_rows<deviation_bits, group_size>(task, tables, row, rows);
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
