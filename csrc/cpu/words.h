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

#if PHIQUANT_BYTES != 64
// 16 bits each of `count` lanes, up to all of them; `rest` beyond.
PHIQUANT_INLINE vi widen_some(const uint16_t* from, int64_t count, int32_t rest) {
  if (count >= kLanes) return widen(from);
  vi value = splat(rest);
  for (int i = 0; i < kLanes; i++) value[i] = i < count ? from[i] : rest;
  return value;
}
#endif

// Words to scales and bends, in registers.
struct WordReader {
  vf unit;
  int32_t last_bend;
  vi bad{};

  explicit PHIQUANT_MEMBER WordReader(const Layout& layout)
      : unit(splat(power_of_two(layout.exponent))), last_bend(bend_count(layout) - 1) {}

  // The next `count` words, up to all lanes; beyond them 1.0, bend 0. Bends are within the grid's,
  // whatever a word held.
  PHIQUANT_MEMBER void read(const int16_t* words, int64_t count, vf* scale, vi* bend) {
    const vi bits = widen_some(reinterpret_cast<const uint16_t*>(words), count, 0x3C00);
    const vi given = bits & static_cast<int32_t>(kBendMask);
    // An exponent of 0 or 31, plus one, has none of its upper four bits.
    bad |= (((bits + 0x400) & 0x7800) == 0) | (given > last_bend);
    const vi magnitude = ((bits & 0x7FF8) << kWordShift) + static_cast<int32_t>(kWordBias);
    *scale = (vf)(magnitude | (bits & 0x8000) << 16) * unit;
    *bend = given & last_bend;
  }

  // False if one was not a normal fp16 number with a bend of the grid.
  PHIQUANT_MEMBER bool good() const { return !any(bad); }
};

// Up to kStretch words; false if one is bad.
PHIQUANT_INLINE bool read_words(const Layout& layout, const int16_t* words, int64_t count,
                                Scales* out) {
  WordReader reader(layout);
  for (int64_t i = 0; i < count; i += kLanes) {
    vf scale;
    vi bend;
    reader.read(words + i, count - i, &scale, &bend);
    store(out->scale + i, scale);
    store(out->bend + i, bend);
  }
  return reader.good();
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
