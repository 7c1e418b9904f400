// The product of a compiled graph: with all planes, but with the layout in one number. Every
// argument that passes torch's boxing costs a few percent of a small product, and a string most.
#pragma once

#include <array>

#include "cpu_linear.h"

namespace phiquant::cpu {

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

inline Tensor packed_linear(const Tensor& x, const Tensor& index, const OptionalTensor& deviation,
                            const OptionalTensor& deviation_low, const Tensor& scale,
                            const OptionalTensor& remainder, const OptionalTensor& offsets,
                            const OptionalTensor& starts, const OptionalTensor& exceptions,
                            const OptionalTensor& bias, int64_t columns, int64_t layout) {
  const Packed packed = unpacked(columns, layout);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  const CheckedPlanes planes = check_planes(given, packed.layout, packed.stored);
  return linear_of(packed.layout, planes, x, bias, packed.int8);
}

}  // namespace phiquant::cpu
