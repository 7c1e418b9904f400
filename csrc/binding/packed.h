// The layout of a compiled graph's product, which is one number: every argument that passes torch's
// boxing costs a few percent of a small product, and a string most.
#pragma once

#include <array>

#include "arguments.h"

namespace phiquant {

// What phiquant/graph_ops.py packs.
struct Packed {
  Layout layout;
  OptionalDtype stored;
  bool int8;
};

// The lowest `bits` bits, which go.
inline int64_t take(int64_t& code, int bits) {
  const int64_t value = code & ((int64_t{1} << bits) - 1);
  code >>= bits;
  return value;
}

inline Packed unpacked(int64_t columns, int64_t code) {
  if (code < 0 || code >> 28 != 0) {
    fail("layout: expected a number of 28 bits, got " + std::to_string(code));
  }
  const int64_t index_bits = take(code, 4), deviation_bits = take(code, 4);
  const int64_t group_size = take(code, 8), golden = take(code, 1);
  const int64_t exponent = take(code, 8) - kLargestExponent;
  const std::array<OptionalDtype, 4> dtypes{std::nullopt, ScalarType::BFloat16, ScalarType::Half,
                                            ScalarType::Float};
  const OptionalDtype stored = dtypes[static_cast<size_t>(take(code, 2))];
  const bool int8 = take(code, 1) != 0;
  const Layout layout = make_layout(columns, index_bits, deviation_bits, group_size,
                                    golden != 0 ? "golden" : "phi", exponent);
  return {layout, stored, int8};
}

}  // namespace phiquant
