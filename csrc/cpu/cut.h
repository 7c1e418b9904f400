// One bend's curve, and what its tables for the first pass of encoding (scan.h) are made from.
#pragma once

#include "inverse.h"
#include "tables.h"

namespace phiquant::cpu {

inline constexpr double kErrorRounding = 0x1p-20;  // of an error in fp32, in scanning and scoring

// The curve on cells, and how a layout cuts them.
struct Cut {
  double bend;
  int half, bits;
  bool shared;  // by the scales of both signs

  double position_scale() const { return half << bits; }
  double value(double cell) const {
    const double q = cell / half;
    return (1 - bend) * q + bend * q * q * q;
  }
  double top() const { return value(half + 0.125); }
  // The most by which one sign's scale exceeds the other's: rounded to 7 mantissa bits.
  double ratio() const { return shared ? top() / value(half - 0.5) * 1.008 : 1; }
};

// Errors that are off by at most `doubt` each: their sum of squares is off by a share of itself and
// this a weight, since 2 |a| |b| <= share a^2 + b^2 / share.
inline double squared_slack(double doubt, double share) { return doubt * doubt * (1 + 1 / share); }

// Sets the table of numbers of 16 bits.
void set_halves(const Cut& cut, HalvesTable* out);

}  // namespace phiquant::cpu
