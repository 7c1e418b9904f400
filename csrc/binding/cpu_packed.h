// The product of a compiled graph on the CPU: with all planes, but with the layout in one number.
#pragma once

#include "cpu_linear.h"
#include "packed.h"

namespace phiquant::cpu {

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
