// x . weight^T on the CPU of decoded weights: some rows of the weight are decoded, for the caches,
// and multiplied; or blocks of them, by torch. x is a matrix here.
#pragma once

#include "cpu_codes.h"

namespace phiquant::cpu {

inline constexpr int64_t kBlockBytes = int64_t{8} << 20;  // of decoded weights at a time

inline Tensor aten_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
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

// The kernels that are for so many rows of x and decoded weights; or null.
inline const DecodedKernels* decoded_kernels(Dtype x, int64_t m) {
  for (const DecodedKernels* way : {kernels().decoded_tiles, kernels().decoded}) {
    if (way != nullptr && way->takes(x, m)) return way;
  }
  return nullptr;
}

// Some rows of the weight at a time are decoded, for the caches, and multiplied.
inline Tensor decoded_linear(const DecodedKernels& set, const LinearArguments& given) {
  const Layout& layout = given.layout;
  const int64_t columns = layout.columns, size = size_of(set.weight), most = set.rows(columns);
  const Dtype kind = dtype_of("x", given.x.scalar_type());
  // Whole vectors, and a line more, so that rows do not compete for the same places in the cache.
  const int64_t stride = (columns + 63) / 64 * 64 + 32;
  const Exceptions exceptions = exceptions_of(given.planes);
  Tensor out = new_tensor({given.m, given.out_features}, given.x.scalar_type());
  const OptionalTensor bias = float_bias_of(given);
  auto* x = static_cast<uint8_t*>(scratch<Scratch::kX>(set.x_bytes(columns, given.m)));
  {
    const DenormalsKept denormals;
    set.prepare(columns, kind, given.x.const_data_ptr(), given.m, x);
  }
  Failure failure;
  over_rows(given.out_features, columns, most, [&](int64_t begin, int64_t end) {
    auto* memory = static_cast<uint8_t*>(scratch<Scratch::kWeight>(most * stride * size));
    for (int64_t i = 0; i < most; i++) {
      std::memset(memory + (i * stride + columns) * size, 0,
                  static_cast<size_t>((stride - columns) * size));
    }
    for (int64_t first = begin; first < end; first += most) {
      const int64_t rows = std::min(most, end - first);
      const DecodeTask task{
          layout, planes_from(given, first),    nullptr, golden_table(layout), set.weight, memory,
          stride, remainder_from(given, first), nullptr};
      const Status status = decode_range(task, 0, rows, &failure);
      if (status != Status::kOk) return status;
      put_exceptions(exceptions, task, first, rows);
      set.multiply(DecodedTask{memory, stride, x, data<float>(bias), kind, out.mutable_data_ptr(),
                               given.m, columns, first, rows, given.out_features});
    }
    return Status::kOk;
  });
  failure.raise(layout);
  return out;
}

inline Tensor blocked_linear(const LinearArguments& given) {
  const ScalarType dtype = given.x.scalar_type();
  const Dtype kind = dtype_of("x", dtype);
  const int64_t columns = given.layout.columns, width = kind == Dtype::kFloat32 ? 4 : 2;
  const Exceptions exceptions = exceptions_of(given.planes);
  const int64_t most =
      std::min(std::max<int64_t>(kBlockBytes / (columns * width), 64), given.out_features);
  void* memory = scratch<Scratch::kWeight>(most * columns * width);
  Tensor out = new_tensor({given.m, given.out_features}, dtype);
  const torch::stable::Device device(torch::headeronly::DeviceType::CPU);
  OptionalTensor bias = given.bias;
  for (int64_t first = 0; first < given.out_features; first += most) {
    const int64_t rows = std::min(most, given.out_features - first);
    const DecodeTask task{given.layout, planes_from(given, first),
                          nullptr,      golden_table(given.layout),
                          kind,         memory,
                          columns,      remainder_from(given, first),
                          nullptr};
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

}  // namespace phiquant::cpu
