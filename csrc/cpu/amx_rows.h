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
  if constexpr (width == 1) {
    _mm512_store_si512(to, _mm512_load_si512(from));
    return;
  }
  alignas(64) int32_t places[16];
  for (int i = 0; i < 16; i++) places[i] = i % width * 16 + i / width;
  const __m512i place = _mm512_load_si512(places);
  for (int i = 0; i < width; i++) {
    const __m512i line = _mm512_i32gather_epi32(place, from + i * (16 / width), 4);
    _mm512_store_si512(to + 16 * i, line);
  }
}

// 64 bf16 columns of one row from `column` on, 0 beyond the last.
PHIQUANT_INLINE void load_piece(const uint16_t* row, int64_t column, int64_t columns,
                                __m512i* piece) {
  const int64_t rest = columns - column;
  const uint64_t all = ~uint64_t{0};
  const uint64_t mask = rest >= 64 ? all : rest <= 0 ? 0 : ~(all << rest);
  piece[0] = _mm512_maskz_loadu_epi16(static_cast<uint32_t>(mask), row + column);
  piece[1] = _mm512_maskz_loadu_epi16(static_cast<uint32_t>(mask >> 32), row + column + 32);
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

// The largest magnitude of a row of bf16.
PHIQUANT_INLINE float largest_of(const uint16_t* row, int64_t columns) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t column = 0; column < columns; column += kPiece) {
    __m512i part[2];
    load_piece(row, column, columns, part);
    for (const __m512i bits : part) {
      largest = _mm512_max_epu16(largest, _mm512_and_si512(bits, _mm512_set1_epi16(0x7FFF)));
    }
  }
  alignas(64) uint16_t lanes[32];
  _mm512_store_si512(lanes, largest);
  uint32_t bits = 0;
  for (const uint16_t lane : lanes) bits = lane > bits ? lane : bits;
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// 64 bf16 to int8, to nearest even, at `reciprocal` steps a unit.
PHIQUANT_INLINE __m512i piece_to_int8(const __m512i part[2], float reciprocal) {
  __m128i quarters[4];
  for (int i = 0; i < 4; i++) {
    const __m256i half = i % 2 == 0 ? _mm512_castsi512_si256(part[i / 2])
                                    : _mm512_extracti64x4_epi64(part[i / 2], 1);
    const vf value = (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
    quarters[i] = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value * reciprocal));
  }
  const __m256i low = _mm256_set_m128i(quarters[1], quarters[0]);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_set_m128i(quarters[3], quarters[2]),
                            1);
}

// Pieces of one block of rows in int8; every piece is one step. A row that holds what is not finite
// keeps a factor that is not, so its products are not finite either.
template <int width>
PHIQUANT_INLINE void interleave_int8(const Order& order, const uint16_t* x, int64_t rows,
                                     int64_t columns, uint8_t* to, float* factors) {
  alignas(64) uint8_t bytes[kPiece];
  for (int i = 0; i < kPiece; i++) bytes[i] = static_cast<uint8_t>(order.place[i]);
  const __m512i places = _mm512_load_si512(bytes);
  alignas(64) int32_t step[width * 16] = {};
  float reciprocals[width];
  for (int64_t i = 0; i < rows; i++) {
    const float largest = largest_of(x + i * columns, columns);
    factors[i] = largest / (127.0f * kInt8Levels);
    reciprocals[i] = largest > 0x1p-120f ? 127.0f / largest : 0.0f;
  }
  for (int64_t column = 0; column < columns; column += kPiece) {
    for (int64_t i = 0; i < rows; i++) {
      __m512i part[2];
      load_piece(x + i * columns, column, columns, part);
      _mm512_store_si512(step + 16 * i,
                         _mm512_permutexvar_epi8(places, piece_to_int8(part, reciprocals[i])));
    }
    interleave<width>(step, reinterpret_cast<int32_t*>(to));
    to += kTileRows * width * 4;
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
