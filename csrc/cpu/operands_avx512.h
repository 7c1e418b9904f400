// Pieces of 64 columns: the order in which weights come out of the planes, and rows of bf16.
#pragma once

#include "nibbles_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr float kInt8Levels = 127.0f;  // the int8 of level 1
enum class Operand { kIndex, kPosition, kInt8 };

// The place in its piece of 64 of every weight of an operand's two steps (of int8: its one).
struct Order {
  alignas(64) uint16_t place[kPiece];
};

inline constexpr Order kPlainOrder = [] {
  Order order{};
  for (int i = 0; i < kPiece; i++) order.place[i] = static_cast<uint16_t>(i);
  return order;
}();

template <Operand operand, int group_size>
constexpr Order order_of() {
  Order order{};
  for (int i = 0; i < kPiece; i++) {
    const int lane = i % 32 / 8, within = i % 8, step = i / 32;
    int place = 0;
    if (group_size == 32) {
      place = i / 32 * 32 + (i % 32 < 16 ? 2 * (i % 32) : 2 * (i % 32 - 16) + 1);
    } else if (operand == Operand::kIndex) {
      place = 2 * (i % 32) + i / 32;
    } else if (operand == Operand::kInt8) {
      place = i < 32 ? 2 * i : 2 * (i - 32) + 1;
    } else {
      const int byte = 16 * lane + 8 * step + within;
      place = byte < 32 ? 2 * byte : 2 * (byte - 32) + 1;
    }
    order.place[i] = static_cast<uint16_t>(place);
  }
  return order;
}

PHIQUANT_INLINE uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

PHIQUANT_INLINE float level_at(const Curve& curve, int bend, float p) {
  return ((p * p) * curve.cubic[bend] + curve.line[bend]) * p;
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

// The largest magnitude of columns [begin, end) of a row, as bits of bf16.
PHIQUANT_INLINE uint32_t largest_bits(const uint16_t* row, int64_t begin, int64_t end) {
  const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t column = begin; column < end; column += kPiece) {
    __m512i part[2];
    load_piece(row, column, end, part);
    for (const __m512i bits : part) {
      largest = _mm512_max_epu16(largest, _mm512_and_si512(bits, magnitude));
    }
  }
  const __m512i odd = _mm512_srli_epi32(largest, 16);
  const __m512i even = _mm512_and_si512(largest, _mm512_set1_epi32(0xFFFF));
  return _mm512_reduce_max_epu32(_mm512_max_epu32(odd, even));
}

// The same of a whole row, as a number.
PHIQUANT_INLINE float largest_of(const uint16_t* row, int64_t columns) {
  const uint32_t bits = largest_bits(row, 0, columns) << 16;
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

// How many steps of int8 a unit of a row is, and the factor of its products. A row that holds what
// is not finite has one that is not.
PHIQUANT_INLINE float int8_factor(const uint16_t* row, int64_t columns, float* factor) {
  const float largest = largest_of(row, columns);
  *factor = largest / (127.0f * kInt8Levels);
  return largest > 0x1p-120f ? 127.0f / largest : 0.0f;
}

PHIQUANT_INLINE __m512i places_of(const Order& order) {
  alignas(64) uint8_t bytes[kPiece];
  for (int i = 0; i < kPiece; i++) bytes[i] = static_cast<uint8_t>(order.place[i]);
  return _mm512_load_si512(bytes);
}

PHIQUANT_INLINE __m512i int8_piece(const uint16_t* row, int64_t column, int64_t columns,
                                   __m512i places, float reciprocal) {
  __m512i part[2];
  load_piece(row, column, columns, part);
  return _mm512_permutexvar_epi8(places, piece_to_int8(part, reciprocal));
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
