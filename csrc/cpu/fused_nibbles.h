// x . weight^T for few rows of x, weights unpacked in registers (nibbles.h). A group's sum is
// multiplied by its scale: that takes one instruction a row of x, and weights are not rounded. |x|
// is below 2^120, so that no such sum overflows.
#pragma once

#include "fused.h"
#include "nibbles.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// x chunk by chunk, in each of them row by row, in each of these as codes are unpacked: all that a
// chunk of weights meets lies together, at distances that are known when this is compiled.
static void prepare_chunks(const Layout& layout, Dtype dtype, const void* x, int64_t m,
                           float* prepared) {
  if (!has_nibbles(layout)) return prepare(layout, dtype, x, m, prepared);
  const int64_t padded = groups_of(layout) * layout.group_size, width = size_of(dtype);
  Layout piece = layout;
  piece.group_size = kChunk;
  for (int64_t row = 0; row < m; row++) {
    const uint8_t* from = static_cast<const uint8_t*>(x) + row * layout.columns * width;
    for (int64_t column = 0; column < padded; column += kChunk) {
      alignas(64) float given[kChunk]{};
      const int64_t rest = layout.columns - column;
      piece.columns = rest < kChunk ? rest : kChunk;
      if (rest > 0) prepare(piece, dtype, from + column * width, 1, given);
      float* to = prepared + column * m + row * kChunk;
      for (int at = 0; at < kChunk; at += 8) {
        const v4 first = load<v4>(given + at), second = load<v4>(given + at + 4);
        store(to + at, __builtin_shufflevector(first, second, 0, 2, 4, 6));
        store(to + at + 4, __builtin_shufflevector(first, second, 1, 3, 5, 7));
      }
    }
  }
}

struct NibbleTables {
  Curve curve;  // on the positions of codes
  ByteLevels levels;
};

// Sums of m rows of x with one row of the weight; two chains hide the latency of one row's.
template <int m>
struct Sums {
  static constexpr int kChains = m == 1 ? 2 : 1;
  vf sum[m][kChains]{};
};

template <int deviation_bits>
inline constexpr bool kLooksUp = kByteTables && deviation_bits == 0;

// 32 weights against m rows of x. Instructions, loads of planes and of x aside, for m = 1:
//   look-ups: AVX2  2 for codes, 12 for levels, 4 sums                              = 18
//             NEON  2 for codes, 24 for levels, 8 sums                              = 34
//   cubic:    AVX2  5 for codes, 10 for positions, 4 vectors of 3 and a sum         = 31
//             NEON  3 for codes, 20 for positions, 8 vectors of 3 and a sum         = 55
// Another row of x takes one a vector: 4 (AVX2) or 8.
template <int deviation_bits, int m>
PHIQUANT_INLINE void add_chunk(const uint8_t* index, const uint8_t* deviation,
                               const uint8_t table[4][16], vf line, vf cubic, const float* x,
                               Sums<m>* sums) {
  for (int part = 0; part < kCodeVectors; part++) {
    const bytes codes = load_codes<deviation_bits>(index, deviation, part);
    vf unpacked[kSteps];
    if (kLooksUp<deviation_bits>) {
      look_up_levels(table, codes, unpacked);
    } else {
      find_positions<deviation_bits>(codes, unpacked);
    }
    for (int step = 0; step < kSteps; step++) {
      const vf p = unpacked[step];
      const vf slope = kLooksUp<deviation_bits> ? p : multiply_add(p * p, cubic, line);
      const vf weight = kLooksUp<deviation_bits> ? p : slope * p;
      for (int i = 0; i < m; i++) {
        const vf factor = load<vf>(x + i * kChunk + place_of(part, step));
        vf& sum = sums->sum[i][step % Sums<m>::kChains];
        // With one row, p * factor does not wait for the slope.
        sum = m == 1 && !kLooksUp<deviation_bits> ? multiply_add(slope, factor * p, sum)
                                                  : multiply_add(weight, factor, sum);
      }
    }
  }
}

// Rows of the weight that share a block of x while it is in the L1 cache.
inline constexpr int kTile = 16;
inline constexpr int kBlockFloats = 6144;  // of x

// Groups from `start` on of one row, against m rows of x.
template <int deviation_bits, int m>
PHIQUANT_INLINE bool add_stretch(const FusedTask& task, const NibbleTables& tables, int64_t row,
                                 int64_t start, int64_t count, const float* x, vf total[m]) {
  const int group_size = task.layout.group_size;
  const int64_t before = row * groups_of(task.layout) + start;
  const uint8_t* index = task.planes.index + before * (group_size / 2);
  const uint8_t* deviation =
      deviation_bits == 0 ? nullptr : task.planes.deviation + before * (group_size / 2);
  Scales scales;
  const bool good = read_words(task.layout, task.planes.scale + before, count, &scales);
  for (int64_t i = 0; i < count; i++) {
    const int32_t bend = scales.bend[i];
    const vf line = splat(tables.curve.line[bend]), cubic = splat(tables.curve.cubic[bend]);
    Sums<m> sums;
    for (int at = 0; at < group_size; at += kChunk) {
      add_chunk<deviation_bits, m>(index, deviation, tables.levels.byte[bend], line, cubic, x,
                                   &sums);
      index += kChunk / 2;
      if (deviation_bits != 0) deviation += kChunk / 2;
      x += kChunk * m;
    }
    for (int j = 0; j < m; j++) {
      vf sum = sums.sum[j][0];
      if (Sums<m>::kChains == 2) sum += sums.sum[j][Sums<m>::kChains - 1];
      total[j] = multiply_add(sum, splat(scales.scale[i]), total[j]);
    }
  }
  return good;
}

// Up to kTile rows of the weight from `row` on, against the first m rows of x.
template <int deviation_bits, int m>
static bool fused_tile(const FusedTask& task, const NibbleTables& tables, int64_t row,
                       int64_t rows) {
  const int64_t groups = groups_of(task.layout);
  const int64_t most = kBlockFloats / (task.layout.group_size * m);
  const int64_t block = most < kStretch ? most : kStretch;
  vf total[kTile][m]{};
  bool good = true;
  for (int64_t start = 0; start < groups; start += block) {
    const int64_t count = groups - start < block ? groups - start : block;
    const float* x = task.x + start * task.layout.group_size * m;
    for (int64_t i = 0; i < rows; i++) {
      good &= add_stretch<deviation_bits, m>(task, tables, row + i, start, count, x, total[i]);
    }
  }
  for (int64_t i = 0; i < rows; i++) {
    for (int j = 0; j < m; j++) store_sum(task, j, row + i, cpu::PHIQUANT_ISA::total(total[i][j]));
  }
  return good;
}

typedef bool (*FusedTile)(const FusedTask&, const NibbleTables&, int64_t, int64_t);

template <int deviation_bits>
PHIQUANT_INLINE FusedTile tile_of(int64_t m) {
  static constexpr FusedTile kTiles[kMostRows] = {
      fused_tile<deviation_bits, 1>, fused_tile<deviation_bits, 2>, fused_tile<deviation_bits, 3>,
      fused_tile<deviation_bits, 4>, fused_tile<deviation_bits, 5>, fused_tile<deviation_bits, 6>,
      fused_tile<deviation_bits, 7>, fused_tile<deviation_bits, 8>};
  return kTiles[m - 1];
}

static Status fused_nibbles(const FusedTask& task, int64_t begin, int64_t end) {
  if (!has_nibbles(task.layout)) return fused(task, begin, end);
  const bool shallow = task.layout.deviation_bits == 0;
  const Curve curve = Curve::of(task.layout);
  NibbleTables tables{curve, ByteLevels(curve)};
  to_positions_of_codes(task.layout.deviation_bits, &tables.curve);
  const FusedTile tile = shallow ? tile_of<0>(task.m) : tile_of<4>(task.m);
  bool good = true;
  for (int64_t row = begin; row < end; row += kTile) {
    good &= tile(task, tables, row, end - row < kTile ? end - row : kTile);
  }
  return good ? Status::kOk : Status::kBadWord;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
