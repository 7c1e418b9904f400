// torch.ops.phiquant.linear on the CPU: few rows of x meet weights that are decoded in registers,
// many rows are multiplied by torch with blocks of decoded weights.
#pragma once

#include <memory>

#include "cpu_tasks.h"

namespace phiquant::cpu {

inline constexpr int64_t kBlockBytes = int64_t{8} << 20;  // of decoded weights at a time

struct LinearArguments {
  Layout layout;
  CheckedPlanes planes;
  Tensor x;  // [m, columns], contiguous
  OptionalTensor bias;
  int64_t m;
  int64_t out_features;
};

inline Tensor aten_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline void check_bias(const OptionalTensor& bias, ScalarType dtype, int64_t out_features) {
  if (!bias.has_value()) return;
  if (bias->scalar_type() != dtype || !has_shape(*bias, {out_features})) {
    fail("bias: expected " + dtype_text(dtype) + " of shape " + tuple_text({out_features}) +
         ", got " + dtype_text(bias->scalar_type()) + " of shape " + tuple_text(shape_of(*bias)));
  }
  check_cpu("bias", *bias);
}

inline Tensor fused_linear(const LinearArguments& given) {
  const Layout& layout = given.layout;
  const ScalarType dtype = given.x.scalar_type();
  const int64_t padded = groups_of(layout) * layout.group_size;
  Tensor out = new_tensor({given.m, given.out_features}, dtype);
  OptionalTensor bias;
  if (given.bias.has_value()) {
    bias = float_bias(*given.bias);
  }
  float* x = static_cast<float*>(scratch(given.m * padded * int64_t{sizeof(float)}));
  const Dtype kind = dtype_of("x", dtype);
  const Kernels& set = kernels();
  {
    const DenormalsKept denormals;
    set.prepare(layout, kind, given.x.const_data_ptr(), given.m, x);
  }
  const FusedTask task{layout,
                       pointers(given.planes),
                       golden_table(layout),
                       x,
                       data<float>(bias),
                       kind,
                       out.mutable_data_ptr(),
                       given.m,
                       given.out_features};
  const Status status =
      over_rows(given.out_features, layout.columns,
                [&](int64_t begin, int64_t end) { return set.fused(task, begin, end); });
  if (status == Status::kBadWord) fail_word(layout);
  return out;
}

// The planes from row `first` on.
inline Planes planes_from(const LinearArguments& given, int64_t first) {
  const Layout& layout = given.layout;
  Planes planes = pointers(given.planes);
  planes.index += first * row_bytes(layout, layout.index_bits);
  if (planes.deviation != nullptr) planes.deviation += first * row_bytes(layout, high_bits(layout));
  if (planes.deviation_low != nullptr) {
    planes.deviation_low += first * row_bytes(layout, low_bits(layout));
  }
  planes.scale += first * groups_of(layout);
  return planes;
}

// The same for remainders: they keep their places, since blocks are counted from where they begin.
inline Remainder remainder_from(const LinearArguments& given, int64_t first) {
  Remainder remainder = remainder_of(given.layout, given.planes);
  remainder.first_block = first * blocks_of(given.layout);
  return remainder;
}

inline Tensor blocked_linear(const LinearArguments& given) {
  const ScalarType dtype = given.x.scalar_type();
  const Dtype kind = dtype_of("x", dtype);
  const int64_t columns = given.layout.columns, width = kind == Dtype::kFloat32 ? 4 : 2;
  const Exceptions exceptions = exceptions_of(given.planes);
  const int64_t most =
      std::min(std::max<int64_t>(kBlockBytes / (columns * width), 64), given.out_features);
  void* memory = scratch(most * columns * width);
  Tensor out = new_tensor({given.m, given.out_features}, dtype);
  const torch::stable::Device device(torch::headeronly::DeviceType::CPU);
  OptionalTensor bias = given.bias;
  for (int64_t first = 0; first < given.out_features; first += most) {
    const int64_t rows = std::min(most, given.out_features - first);
    const DecodeTask task{
        given.layout, planes_from(given, first),    nullptr, golden_table(given.layout), kind,
        memory,       remainder_from(given, first), nullptr};
    decode_rows(task, rows);
    put_exceptions(exceptions, task, first, rows);
    const Tensor weight =
        torch::stable::from_blob(memory, Shape{rows, columns}, Shape{columns, 1}, device, dtype);
    OptionalTensor part;
    if (bias.has_value()) part = torch::stable::narrow(*bias, 0, first, rows);
    const Tensor product = aten_linear(given.x, weight, part);
    if (rows == given.out_features) return product;
    Tensor to = torch::stable::narrow(out, 1, first, rows);
    torch::stable::copy_(to, product);
  }
  return out;
}

// fp64 has no kernel of its own: fp32 holds every decoded weight.
inline Tensor double_linear(const LinearArguments& given) {
  const Tensor weight =
      decode_to(given.layout, given.planes, nullptr, {given.out_features}, ScalarType::Double);
  return aten_linear(given.x, weight, given.bias);
}

inline bool is_fused(const LinearArguments& given) {
  const bool plain = !given.planes.stored.has_value() && !given.planes.exceptions.has_value();
  return plain && given.m <= kernels().fused_rows(given.layout);
}

inline Tensor linear_of(const Layout& layout, const GivenPlanes& stored,
                        const OptionalDtype& stored_dtype, const Tensor& x,
                        const OptionalTensor& bias) {
  const int64_t columns = layout.columns;
  CheckedPlanes planes = check_planes(stored, layout, stored_dtype);
  check_matrix(planes);
  const Shape leading = leading_of("x", x);
  if (x.sizes().back() != columns) {
    fail("x: expected a last dimension of " + std::to_string(columns) + ", got shape " +
         tuple_text(shape_of(x)));
  }
  check_cpu("x", x);
  const ScalarType dtype = x.scalar_type();
  const int64_t m = product(leading), out_features = planes.rows;
  if (dtype != ScalarType::Double) dtype_of("x", dtype);
  check_bias(bias, dtype, out_features);
  if (m == 0 || out_features == 0) return new_tensor(with_last(leading, out_features), dtype);
  const Tensor flat = reshaped(dense(x), {m, columns});
  const LinearArguments given{layout, std::move(planes), flat, bias, m, out_features};
  const Tensor result = dtype == ScalarType::Double ? double_linear(given)
                        : is_fused(given)           ? fused_linear(given)
                                                    : blocked_linear(given);
  return reshaped(result, with_last(leading, out_features));
}

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
  return linear_of(layout, stored, stored_dtype, x, bias);
}

}  // namespace phiquant::cpu
