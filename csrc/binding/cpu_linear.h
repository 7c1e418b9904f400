// torch.ops.phiquant.linear on the CPU: arguments are checked, and a product is chosen.
#pragma once

#include "cpu_products.h"

namespace phiquant::cpu {

inline void check_bias(const OptionalTensor& bias, ScalarType dtype, int64_t out_features) {
  if (!bias.has_value()) return;
  if (bias->scalar_type() != dtype || !has_shape(*bias, {out_features})) {
    fail("bias: expected " + dtype_text(dtype) + " of shape " + tuple_text({out_features}) +
         ", got " + dtype_text(bias->scalar_type()) + " of shape " + tuple_text(shape_of(*bias)));
  }
  check_cpu("bias", *bias);
}

// Up to so many rows, codes in fp32 are faster than decoded weights on the matrix unit.
inline constexpr int64_t kFewForMatrixUnit = 4;

// `int8`: rows of x may be rounded to int8 where there is a kernel for that.
inline Tensor product_of(const LinearArguments& given, bool int8) {
  const Kernels& set = kernels();
  const ScalarType dtype = given.x.scalar_type();
  if (dtype == ScalarType::Double) return double_linear(given);
  const Dtype kind = dtype_of("x", dtype);
  const bool lossy = !given.planes.stored.has_value() && !given.planes.exceptions.has_value();
  const bool half = kind == Dtype::kBFloat16;
  if (lossy) {
    if (const CodeKernels* way = int8 ? code_kernels(given, true) : nullptr) {
      return int8_linear(*way, given);
    }
    if (const CodeKernels* way = half ? code_kernels(given, false) : nullptr) {
      return code_linear(*way, given, false);
    }
    const bool dense = half && set.tiles != nullptr && given.m > kFewForMatrixUnit;
    if (!dense && given.m <= set.fused_rows(given.layout)) return fused_linear(given);
  }
  const DecodedKernels* way = decoded_kernels(kind, given.m);
  return way != nullptr ? decoded_linear(*way, given) : blocked_linear(given);
}

// Checks x and the bias, and multiplies. A matrix x is handed on without a copy of its shape: for a
// product of 64 x 64 each allocation is one percent.
inline Tensor linear_of(const Layout& layout, const CheckedPlanes& planes, const Tensor& x,
                        const OptionalTensor& bias, bool int8) {
  const int64_t columns = layout.columns, out_features = planes.rows;
  check_matrix(planes);
  const auto sizes = x.sizes();
  if (sizes.empty()) fail("x: expected at least one dimension, got shape ()");
  if (sizes.back() != columns) {
    fail("x: expected a last dimension of " + std::to_string(columns) + ", got shape " +
         tuple_text(shape_of(x)));
  }
  check_cpu("x", x);
  const ScalarType dtype = x.scalar_type();
  if (dtype != ScalarType::Double) dtype_of("x", dtype);
  check_bias(bias, dtype, out_features);
  if (sizes.size() == 2 && sizes[0] > 0 && out_features > 0) {
    return product_of({layout, planes, dense(x), bias, sizes[0], out_features}, int8);
  }
  const Shape leading = leading_of("x", x);
  const int64_t m = product(leading);
  if (m == 0 || out_features == 0) return new_tensor(with_last(leading, out_features), dtype);
  const Tensor flat = reshaped(dense(x), {m, columns});
  const Tensor result = product_of({layout, planes, flat, bias, m, out_features}, int8);
  return reshaped(result, with_last(leading, out_features));
}

template <bool int8>
inline Tensor linear(Tensor x, Tensor index, OptionalTensor deviation, OptionalTensor deviation_low,
                     Tensor scale, OptionalTensor remainder, OptionalTensor offsets,
                     OptionalTensor starts, OptionalTensor exceptions, OptionalTensor bias,
                     int64_t columns, int64_t index_bits, int64_t deviation_bits,
                     int64_t group_size, StringHandle grid, int64_t exponent,
                     OptionalDtype stored_dtype) {
  const Layout layout =
      make_layout(columns, index_bits, deviation_bits, group_size, taken(grid), exponent);
  const GivenPlanes stored{index,     deviation, deviation_low, scale,
                           remainder, offsets,   starts,        exceptions};
  return linear_of(layout, check_planes(stored, layout, stored_dtype), x, bias, int8);
}

}  // namespace phiquant::cpu
