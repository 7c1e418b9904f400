// x . weight^T on the matrix unit where the weights are decoded already: bf16, row after row.
#pragma once

#include "amx_sums.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kPairBytes = kTileRows * kWidest * 4;  // of one step of a block of x

// Whole pieces of columns, in steps of bf16.
PHIQUANT_INLINE int64_t decoded_steps(int64_t columns) {
  return (columns + kPiece - 1) / kPiece * 2;
}

static bool takes_decoded(Dtype x, int64_t) { return x == Dtype::kBFloat16; }

static int64_t decoded_x_bytes(int64_t columns, int64_t m) {
  return (m + kWidest - 1) / kWidest * decoded_steps(columns) * kPairBytes;
}

static void prepare_decoded(int64_t columns, Dtype, const void* x, int64_t m, uint8_t* to) {
  const uint16_t* from = static_cast<const uint16_t*>(x);
  for (int64_t first = 0; first < m; first += kWidest) {
    const int64_t rows = m - first < kWidest ? m - first : kWidest;
    interleave_pieces<kWidest>(kPlainOrder, from + first * columns, rows, columns, to);
    to += decoded_steps(columns) * kPairBytes;
  }
}

// Up to 32 rows of weights with up to two blocks of x: sums of tile 2 r + b are those of rows
// 16 r .. with block b. `second`, `wide`: whether there are rows or a block beyond the first 16.
template <bool second, bool wide>
PHIQUANT_INLINE void multiply_decoded_tiles(const DecodedTask& task, int64_t row, const uint8_t* x,
                                            float sums[4][kTileRows * kWidest]) {
  const int64_t stride = task.stride * 2, steps = decoded_steps(task.columns);
  const uint8_t* weight = static_cast<const uint8_t*>(task.weight) + row * stride;
  const uint8_t* below = weight + kTileRows * stride;
  const uint8_t* other = x + steps * kPairBytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; step++) {
    _tile_loadd(4, weight + step * 64, stride);
    _tile_loadd(6, x + step * kPairBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (wide) {
      _tile_loadd(7, other + step * kPairBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (second) {
      _tile_loadd(5, below + step * 64, stride);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (wide) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
}

// As many rows as half of a core's cache holds beside rows of x, for x comes from far.
static int64_t decoded_rows(int64_t columns) {
  constexpr int64_t kBytes = int64_t{1} << 20, kMost = 128, kLeast = 2 * kTileRows;
  const int64_t rows = kBytes / (columns * 2) / kLeast * kLeast;
  return rows < kLeast ? kLeast : rows > kMost ? kMost : rows;
}

// Rows [row, row + rows) of the task's, at most 32, with up to 32 rows of x from `first` on.
PHIQUANT_INLINE void multiply_decoded_part(const DecodedTask& task, int64_t row, int64_t first) {
  alignas(64) float sums[4][kTileRows * kWidest];
  const uint8_t* x = task.x + first / kWidest * decoded_steps(task.columns) * kPairBytes;
  const bool wide = task.m - first > kWidest;
  if (task.rows - row > kTileRows) {
    wide ? multiply_decoded_tiles<true, true>(task, row, x, sums)
         : multiply_decoded_tiles<true, false>(task, row, x, sums);
  } else {
    wide ? multiply_decoded_tiles<false, true>(task, row, x, sums)
         : multiply_decoded_tiles<false, false>(task, row, x, sums);
  }
  for (int tile = 0; tile < 4; tile++) {
    const int64_t from = row + tile / 2 * kTileRows, at = first + tile % 2 * kWidest;
    const int64_t rows = task.rows - from, count = task.m - at;
    if (rows <= 0 || count <= 0) continue;
    store_sums<kWidest>(sums[tile], task.bias, nullptr, task.row + from,
                        rows < kTileRows ? rows : kTileRows, at, count < kWidest ? count : kWidest,
                        task.out_features, static_cast<uint16_t*>(task.out));
  }
}

static void multiply_decoded(const DecodedTask& task) {
  const Tiles tiles(kWidest);
  before_tile_loads();
  for (int64_t first = 0; first < task.m; first += 2 * kWidest) {
    for (int64_t row = 0; row < task.rows; row += 2 * kTileRows) {
      multiply_decoded_part(task, row, first);
    }
  }
}

static constexpr DecodedKernels kDecodedKernels{Dtype::kBFloat16, decoded_rows,
                                                takes_decoded,    decoded_x_bytes,
                                                prepare_decoded,  multiply_decoded};

}  // namespace phiquant::cpu::PHIQUANT_ISA
