// Rows of x as operands of the matrix unit. A block is `width` rows; of every step it holds 16
// lines, each with one dword (two bf16, or four int8) of every row: [blocks][steps][16][width]
// dwords. Columns are in the order of the operand they meet; what is missing is 0.
#pragma once

#include "amx_levels.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kBatch = 4;    // groups that are multiplied at once
inline constexpr int kWidest = 16;  // rows of x in a block

// Groups in whole batches.
PHIQUANT_INLINE int64_t rounded_groups(const Layout& layout) {
  return (groups_of(layout) + kBatch - 1) / kBatch * kBatch;
}

// How many tiles the columns of a row take.
PHIQUANT_INLINE int64_t steps_of(const Layout& layout, bool int8) {
  return rounded_groups(layout) * layout.group_size / (int8 ? 64 : 32);
}

// As many rows as a block holds: a power of two.
PHIQUANT_INLINE int block_width(int64_t m) {
  int width = 1;
  while (width < m && width < kWidest) width *= 2;
  return width;
}

// 16 dwords of each of `width` rows, one after the other in `from`, to 16 lines of `width` dwords.
template <int width>
PHIQUANT_INLINE void interleave(const int32_t* from, int32_t* to) {
  alignas(64) int32_t places[16];
  for (int i = 0; i < 16; i++) places[i] = i % width * 16 + i / width;
  const __m512i place = _mm512_load_si512(places);
  for (int i = 0; i < width; i++) {
    const __m512i line = _mm512_i32gather_epi32(place, from + i * (16 / width), 4);
    _mm512_store_si512(to + 16 * i, line);
  }
}

// Pieces of 64 columns of one block of rows of bf16; every piece is two steps.
template <int width>
PHIQUANT_INLINE void interleave_pieces(const Order& order, const uint16_t* x, int64_t rows,
                                       int64_t columns, uint8_t* to) {
  const __m512i places[2] = {_mm512_load_si512(order.place), _mm512_load_si512(order.place + 32)};
  alignas(64) int32_t steps[2][width * 16] = {};
  for (int64_t column = 0; column < columns; column += kPiece) {
    for (int64_t i = 0; i < rows; i++) {
      __m512i part[2];
      load_piece(x + i * columns, column, columns, part);
      for (int step = 0; step < 2; step++) {
        _mm512_store_si512(steps[step] + 16 * i,
                           _mm512_permutex2var_epi16(part[0], places[step], part[1]));
      }
    }
    for (int step = 0; step < 2; step++) {
      interleave<width>(steps[step], reinterpret_cast<int32_t*>(to));
      to += kTileRows * width * 4;
    }
  }
}

// Pieces of one block of rows in int8; every piece is one step. A row that holds what is not finite
// keeps a factor that is not, so its products are not finite either.
template <int width>
PHIQUANT_INLINE void interleave_int8(const Order& order, const uint16_t* x, int64_t rows,
                                     int64_t columns, uint8_t* to, float* factors) {
  const __m512i places = places_of(order);
  alignas(64) int32_t step[width * 16] = {};
  float reciprocals[width];
  for (int64_t i = 0; i < rows; i++) {
    reciprocals[i] = int8_factor(x + i * columns, columns, factors + i);
  }
  for (int64_t column = 0; column < columns; column += kPiece) {
    for (int64_t i = 0; i < rows; i++) {
      _mm512_store_si512(step + 16 * i,
                         int8_piece(x + i * columns, column, columns, places, reciprocals[i]));
    }
    interleave<width>(step, reinterpret_cast<int32_t*>(to));
    to += kTileRows * width * 4;
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
