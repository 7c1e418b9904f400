// Scale words of a stretch of a row, read and checked many at a time.
#pragma once

#include "phiquant/grid.h"
#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kStretch = 64;  // groups whose words are read at once

struct Scales {
  alignas(64) float scale[kStretch];
  alignas(64) int32_t bend[kStretch];  // within the grid's bends, whatever the word held
};

// The line's and the cubic's coefficient of every bend; both exact.
struct Curve {
  alignas(64) float line[kBendCount];
  alignas(64) float cubic[kBendCount];

  static PHIQUANT_MEMBER Curve of(const Layout& layout) {
    const float half = static_cast<float>(half_of(layout));
    Curve curve;
    for (int i = 0; i < kBendCount; i++) {
      curve.line[i] = kLines[i] / half;
      curve.cubic[i] = kBends[i] / (half * half * half);
    }
    return curve;
  }
};

PHIQUANT_INLINE float power_of_two(int exponent) {
  const uint32_t bits = static_cast<uint32_t>(127 + exponent) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Up to kStretch words; false if one is not a normal fp16 number with a bend of the grid.
PHIQUANT_INLINE bool read_words(const Layout& layout, const int16_t* words, int64_t count,
                                Scales* out) {
  alignas(64) uint16_t padded[kStretch];
  const vh one = vh{} + 0x3C00;  // 1.0, bend 0
  for (int i = 0; i < count; i += kLanes) store(padded + i, one);
  std::memcpy(padded, words, static_cast<size_t>(count) * sizeof *words);
  const vf unit = splat(power_of_two(layout.exponent));
  const int32_t bends = bend_count(layout);
  vi bad{};
  for (int i = 0; i < count; i += kLanes) {
    const vi bits = widen(padded + i);
    const vi bend = bits & static_cast<int32_t>(kBendMask), exponent = bits & 0x7C00;
    bad |= (exponent == 0) | (exponent == 0x7C00) | (bend >= bends);
    const vi magnitude = ((bits & 0x7FF8) << kWordShift) + static_cast<int32_t>(kWordBias);
    store(out->scale + i, (vf)(magnitude | (bits & 0x8000) << 16) * unit);
    store(out->bend + i, bend & (bends - 1));
  }
  return !any(bad);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
