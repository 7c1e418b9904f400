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

// How x meets a weight that is not decoded first; if neither, it is.
struct Way {
  const CodeKernels* codes;
  bool int8;
  bool fused;
};

// The same for weights of one layout. `rounded`: rows of x may be, where a kernel is for that: to
// int8 if there are indices alone, else to bf16.
inline Way way_of(const LinearArguments& given, bool rounded) {
  if (given.planes.stored.has_value() || given.planes.exceptions.has_value()) return {};
  const ScalarType dtype = given.x.scalar_type();
  if (dtype == ScalarType::Double) return {};
  const Kernels& set = kernels();
  const bool half = dtype == ScalarType::BFloat16;
  if (const CodeKernels* way = rounded ? code_kernels(given, true) : nullptr)
    return {way, true, false};
  const bool codes = half || (rounded && given.layout.deviation_bits > 0);
  if (const CodeKernels* way = codes ? code_kernels(given, false) : nullptr) {
    return {way, false, false};
  }
  const bool dense = half && set.tiles != nullptr && given.m > kFewForMatrixUnit;
  return {nullptr, false, !dense && given.m <= set.fused_rows(given.layout)};
}

// x is a matrix.
inline Tensor product_of_decoded(const LinearArguments& given) {
  const ScalarType dtype = given.x.scalar_type();
  if (dtype == ScalarType::Double) return double_linear(given);
  const DecodedKernels* way = decoded_kernels(dtype_of("x", dtype), given.m);
  return way != nullptr ? decoded_linear(*way, given) : blocked_linear(given);
}

inline Tensor product_of(const LinearArguments& given, bool rounded) {
  const Way way = way_of(given, rounded);
  if (way.codes != nullptr) return rounded_linear(*way.codes, given, way.int8);
  if (way.fused) return fused_linear(given);
  if (given.x.dim() == 2) return product_of_decoded(given);
  LinearArguments flat = given;
  flat.x = torch::stable::reshape(given.x, {given.m, given.layout.columns});
  Shape shape = shape_of(given.x);
  shape.back() = given.out_features;
  return torch::stable::reshape(product_of_decoded(flat), shape);
}

inline void check_x(const Tensor& x, int64_t columns) {
  const auto sizes = x.sizes();
  if (sizes.empty()) fail("x: expected at least one dimension, got shape ()");
  if (sizes.back() != columns) {
    fail("x: expected a last dimension of " + std::to_string(columns) + ", got shape " +
         tuple_text(shape_of(x)));
  }
  check_cpu("x", x);
  const ScalarType dtype = x.scalar_type();
  if (dtype != ScalarType::Double) dtype_of("x", dtype);
}

// How many there are. A matrix's shape is not copied: for a product of 64 x 64 each allocation is
// one percent.
inline int64_t rows_of(const Tensor& x) {
  return x.dim() == 2 ? x.sizes()[0] : product(leading_of("x", x));
}

// Checks x and the bias, and multiplies.
inline Tensor linear_of(const Layout& layout, const CheckedPlanes& planes, const Tensor& x,
                        const OptionalTensor& bias, bool rounded) {
  check_matrix(planes);
  check_x(x, layout.columns);
  check_bias(bias, x.scalar_type(), planes.rows);
  const LinearArguments given{layout, planes, dense(x), bias, rows_of(x), planes.rows};
  if (given.m == 0 || given.out_features == 0) return new_out(given, x.scalar_type());
  return product_of(given, rounded);
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
