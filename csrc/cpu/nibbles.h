// Groups of 4-bit indices with no or 4 deviation bits, unpacked in registers: the two
// configurations that decide speed. A chunk is 32 weights, 16 bytes of a plane. Its codes are bytes
// in kCodeVectors registers, and each of them gives four vectors of floats. Of every 8 weights the
// four even ones come first, then the four odd ones: all in one vector of 32 bytes, in vectors of
// neighbouring code registers where a register has 16. x is put into that order once (`prepare`).
//
// An instruction set's hooks: the type `bytes`, load_codes, look_up_bytes and whether it is worth
// it (kByteTables), zip_low and zip_high of bytes and of pairs of bytes (within 16 bytes),
// store_eight.
#pragma once

#include "decode.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kChunk = 32;
inline constexpr int kCodeVectors = kChunk / PHIQUANT_BYTES;
inline constexpr int kSteps = 4;  // vectors of floats that a register of codes gives

PHIQUANT_INLINE bool has_nibbles(const Layout& layout) {
  return layout.grid == GridName::kPhi && layout.index_bits == 4 &&
         (layout.deviation_bits == 0 || layout.deviation_bits == 4);
}

// Where the floats of a step of a register of codes belong, in the order of chunks.
PHIQUANT_INLINE constexpr int place_of(int part, int step) { return step * 8 + part * kLanes; }

// The levels of the 16 indices, byte by byte, so that four look-ups in registers give all four of
// 16 (or 32) floats.
struct ByteLevels {
  alignas(64) uint8_t byte[kBendCount][4][16];

  PHIQUANT_MEMBER explicit ByteLevels(const Curve& curve) {
    for (int bend = 0; bend < kBendCount; bend++) {
      for (int code = 0; code < 16; code++) {
        const float p = static_cast<float>(code - 7);
        const float level = ((p * p) * curve.cubic[bend] + curve.line[bend]) * p;
        uint32_t bits;
        std::memcpy(&bits, &level, sizeof bits);
        for (int i = 0; i < 4; i++) byte[bend][i][code] = static_cast<uint8_t>(bits >> 8 * i);
      }
    }
  }
};

// Four bytes of every lane, given in four registers.
PHIQUANT_INLINE void zip_lanes(const bytes byte[4], bytes lanes[kSteps]) {
  const bytes low01 = zip_low(byte[0], byte[1]), high01 = zip_high(byte[0], byte[1]);
  const bytes low23 = zip_low(byte[2], byte[3]), high23 = zip_high(byte[2], byte[3]);
  lanes[0] = zip_low_pairs(low01, low23);
  lanes[1] = zip_high_pairs(low01, low23);
  lanes[2] = zip_low_pairs(high01, high23);
  lanes[3] = zip_high_pairs(high01, high23);
}

// 12 instructions a register of codes.
PHIQUANT_INLINE void look_up_levels(const uint8_t table[4][16], bytes codes, vf levels[kSteps]) {
  bytes byte[4], lanes[kSteps];
  for (int i = 0; i < 4; i++) byte[i] = look_up_bytes(table[i], codes);
  zip_lanes(byte, lanes);
  for (int step = 0; step < kSteps; step++) levels[step] = (vf)lanes[step];
}

// Positions, exact, in cells or in sixteenths of them: a code becomes the second byte of the float
// 2^15 + code. 10 instructions a register of codes.
template <int deviation_bits>
PHIQUANT_INLINE void find_positions(bytes codes, vf positions[kSteps]) {
  constexpr float kZero = 0x1p15f + (deviation_bits == 0 ? 7.0f : 119.5f);
  const bytes zero{}, high = (bytes)(vi{} + 0x47004700);
  const bytes low_half = zip_low(zero, codes), high_half = zip_high(zero, codes);
  positions[0] = (vf)zip_low_pairs(low_half, high) - kZero;
  positions[1] = (vf)zip_high_pairs(low_half, high) - kZero;
  positions[2] = (vf)zip_low_pairs(high_half, high) - kZero;
  positions[3] = (vf)zip_high_pairs(high_half, high) - kZero;
}

// Coefficients on the positions of find_positions, exact.
PHIQUANT_INLINE void to_positions_of_codes(int deviation_bits, Curve* curve) {
  const float unit = deviation_bits == 0 ? 1.0f : 0x1p-4f;
  for (int bend = 0; bend < kBendCount; bend++) {
    curve->line[bend] *= unit;
    curve->cubic[bend] *= unit * unit * unit;
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
