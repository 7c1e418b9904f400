// torch.ops.phiquant.linear on a GPU: arguments are checked, and a product is chosen.
#pragma once

#include "cuda_tasks.h"
#include "packed.h"

namespace phiquant::cuda {

inline void check_bias(const OptionalTensor& bias, const Tensor& x, int64_t out_features) {
  if (!bias.has_value()) return;
  if (bias->scalar_type() != x.scalar_type() || !has_shape(*bias, {out_features})) {
    fail("bias: expected " + dtype_text(x.scalar_type()) + " of shape " +
         tuple_text({out_features}) + ", got " + dtype_text(bias->scalar_type()) + " of shape " +
         tuple_text(shape_of(*bias)));
  }
  check_device("bias", *bias, x);
}

inline bool is_half(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// The whole weight, decoded to x's type, and torch's product with it.
inline Tensor decoded_linear(const Layout& layout, const CheckedPlanes& planes, const Tensor& x,
                             const OptionalTensor& bias, const Target& target) {
  const Tensor weight = decode_to(layout, planes, nullptr, planes.leading, x.scalar_type(), target);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The products that take codes; none if decoding is the faster way. `task` lacks its `out`.
inline std::optional<Tensor> product_of_codes(ProductTask task, bool exact, const Shape& shape,
                                              ScalarType dtype, const Target& target) {
  const bool at_once = exact ? multiplies_exact(task) : multiplies(task);
  const bool many = !at_once && !exact && multiplies_many(task);
  const bool few = !at_once && !exact && !many && multiplies_few(task);
  if (!at_once && !few && !many) return std::nullopt;
  Tensor out = new_tensor(shape, dtype, target);
  task.out = out.mutable_data_ptr();
  if (many || few) {
    const int64_t bytes = many ? many_workspace(task) : few_workspace(task);
    Tensor workspace = new_tensor({bytes}, ScalarType::Byte, target);
    const auto multiply_rows = many ? multiply_many : multiply_few;
    multiply_rows(task, workspace.mutable_data_ptr(), target.stream());
  } else {
    exact ? multiply_exact(task, target.stream()) : multiply(task, target.stream());
  }
  check_launch();
  return out;
}

// Without its `out`. x and bias are contiguous, and bf16 or fp16.
inline ProductTask product_task(const Layout& layout, const CheckedPlanes& planes, const Tensor& x,
                                const OptionalTensor& bias, int64_t m) {
  return {layout,
          pointers(planes),
          remainder_of(layout, planes),
          x.const_data_ptr(),
          data<uint8_t>(bias),
          nullptr,
          dtype_of("x", x.scalar_type()),
          m,
          planes.rows};
}

inline OptionalTensor dense_bias(const OptionalTensor& bias) {
  return bias.has_value() ? OptionalTensor(dense(*bias)) : std::nullopt;
}

// m rows of x, which is contiguous; m and out_features are at least 1.
inline Tensor linear_of_rows(const Layout& layout, const CheckedPlanes& planes, const Tensor& x,
                             const OptionalTensor& bias, const Shape& leading, int64_t m,
                             const Target& target) {
  const ScalarType dtype = x.scalar_type();
  if (is_half(dtype) && exceptions_of(planes).count == 0) {
    const OptionalTensor shift = dense_bias(bias);
    const ProductTask task = product_task(layout, planes, x, shift, m);
    const bool exact = planes.stored.has_value();
    auto out = product_of_codes(task, exact, with_last(leading, planes.rows), dtype, target);
    if (out.has_value()) return *out;
  }
  return decoded_linear(layout, planes, x, bias, target);
}

// The shape of x without its last dimension.
inline Shape check_operands(const Layout& layout, const CheckedPlanes& planes, const Tensor& x,
                            const OptionalTensor& bias) {
  check_matrix(planes);
  check_device("x", x, *planes.scale);
  const Shape leading = leading_of("x", x);
  if (shape_of(x).back() != layout.columns) {
    fail("x: expected a last dimension of " + std::to_string(layout.columns) + ", got shape " +
         tuple_text(shape_of(x)));
  }
  if (x.scalar_type() != ScalarType::Double) dtype_of("x", x.scalar_type());
  check_bias(bias, x, planes.rows);
  return leading;
}

inline Tensor linear_of(const Layout& layout, const CheckedPlanes& planes, const Tensor& x,
                        const OptionalTensor& bias, const Target& target) {
  const Shape leading = check_operands(layout, planes, x, bias);
  const ScalarType dtype = x.scalar_type();
  const int64_t m = product(leading);
  if (m == 0 || planes.rows == 0) return new_tensor(with_last(leading, planes.rows), dtype, target);
  return linear_of_rows(layout, planes, dense(x), bias, leading, m, target);
}

inline Tensor linear(Tensor x, Tensor index, OptionalTensor deviation, OptionalTensor deviation_low,
                     Tensor scale, OptionalTensor remainder, OptionalTensor offsets,
                     OptionalTensor starts, OptionalTensor exceptions, OptionalTensor bias,
                     int64_t columns, int64_t index_bits, int64_t deviation_bits,
                     int64_t group_size, StringHandle grid, int64_t exponent,
                     OptionalDtype stored_dtype) {
  const Layout layout =
      make_layout(columns, index_bits, deviation_bits, group_size, taken(grid), exponent);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  const Target target(scale);
  return linear_of(layout, check_planes(given, layout, stored_dtype), x, bias, target);
}

// Of a compiled graph: the layout in one number. Rows of x are taken as they are, int8 or not.
inline Tensor packed_linear(const Tensor& x, const Tensor& index, const OptionalTensor& deviation,
                            const OptionalTensor& deviation_low, const Tensor& scale,
                            const OptionalTensor& remainder, const OptionalTensor& offsets,
                            const OptionalTensor& starts, const OptionalTensor& exceptions,
                            const OptionalTensor& bias, int64_t columns, int64_t layout) {
  const Packed packed = unpacked(columns, layout);
  const GivenPlanes given{index,     deviation, deviation_low, scale,
                          remainder, offsets,   starts,        exceptions};
  const Target target(scale);
  return linear_of(packed.layout, check_planes(given, packed.layout, packed.stored), x, bias,
                   target);
}

}  // namespace phiquant::cuda
